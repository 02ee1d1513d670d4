package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rhizome-tunnel/rhizome/examples/compare/internal/results"
)

// amount is what was done in a time, and the processor time that the contender
// had for it.
type amount struct {
	done      float64
	took, cpu time.Duration
}

// timed measures f, which works until its context ends, but once at least, and
// counts what it does.
func timed(ctx context.Context, p *process, d time.Duration, f func(ctx context.Context) (float64, error)) (amount, error) {
	before, err := cpuTime(p.pid)
	if err != nil {
		return amount{}, err
	}
	begin := time.Now()
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	done, err := f(ctx)
	took := time.Since(begin)
	after, cpuErr := cpuTime(p.pid)
	return amount{done, took, after - before}, errors.Join(err, cpuErr)
}

// connections has some clients open connections one after the other.
func connections(clients int) func(context.Context, *process, time.Duration) (amount, error) {
	return func(ctx context.Context, p *process, d time.Duration) (amount, error) {
		return timed(ctx, p, d, func(ctx context.Context) (float64, error) {
			var n atomic.Int64
			err := each(clients, func(int) error {
				for ok := true; ok; ok = ctx.Err() == nil {
					c, err := dial(p.address, doAnswer)
					if err != nil {
						return err
					}
					got, err := io.Copy(io.Discard, io.LimitReader(c, 2))
					c.Close()
					if err != nil {
						return err
					}
					if got != 1 {
						return fmt.Errorf("%d bytes instead of one", got)
					}
					n.Add(1)
				}
				return nil
			})
			return float64(n.Load()), err
		})
	}
}

// bulk downloads over some connections at once; what is done are MiB.
func bulk(streams int) func(context.Context, *process, time.Duration) (amount, error) {
	return func(ctx context.Context, p *process, d time.Duration) (amount, error) {
		return timed(ctx, p, d, func(ctx context.Context) (float64, error) {
			var n atomic.Int64
			err := each(streams, func(int) error {
				c, err := dial(p.address, doDownload)
				if err != nil {
					return err
				}
				defer c.Close()
				b := make([]byte, 256<<10)
				for ok := true; ok; ok = ctx.Err() == nil {
					got, err := c.Read(b)
					if err != nil {
						return err
					}
					n.Add(int64(got))
				}
				return nil
			})
			return float64(n.Load()) / (1 << 20), err
		})
	}
}

// measureIdle opens connections to a fresh process and lets them be.
func measureIdle(ctx context.Context, o options, c *contender, r *results.Results) error {
	n := min(o.idle, (maxDescriptors()-100)/c.descriptors)
	p, stop, err := c.start(ctx, "")
	if err != nil {
		return err
	}
	defer stop()
	// Some are opened and closed before, so that what is there once is there.
	warm, err := idle(p, 32)
	closeAll(warm)
	if err != nil {
		return err
	}
	time.Sleep(o.settle)
	before, err := usage(p.pid)
	if err != nil {
		return err
	}
	conns, err := idle(p, n)
	defer closeAll(conns)
	if err != nil {
		return err
	}
	select {
	case <-time.After(o.settle):
	case <-ctx.Done():
		return ctx.Err()
	}
	after, err := usage(p.pid)
	if err != nil {
		return err
	}
	const name = "idle"
	r.Add(name, "connections", c.name, float64(n))
	r.Add(name, "RSS KiB/connection", c.name, (after.rss-before.rss)/float64(n)/1024)
	r.Add(name, "PSS KiB/connection", c.name, (after.pss-before.pss)/float64(n)/1024)
	r.Add(name, "descriptors/connection", c.name, float64(after.descriptors-before.descriptors)/float64(n))
	r.Add(name, "RSS MiB in all", c.name, after.rss/(1<<20))
	return nil
}

// idle opens connections that stay, each after the backend has answered.
func idle(p *process, n int) ([]net.Conn, error) {
	conns := make([]net.Conn, n)
	const openers = 16
	err := each(openers, func(k int) error {
		for i := k; i < n; i += openers {
			c, err := dial(p.address, doStay)
			if err != nil {
				return err
			}
			conns[i] = c
			answer := make([]byte, 1)
			if _, err := io.ReadFull(c, answer); err != nil {
				return err
			}
			if answer[0] != doStay { // the alert of a refusal
				return errors.New("an idle connection was refused")
			}
		}
		return nil
	})
	return conns, err
}

func closeAll(conns []net.Conn) {
	for _, c := range conns {
		if c != nil {
			c.Close()
		}
	}
}

// each runs f so many times at once and returns the errors.
func each(n int, f func(int) error) error {
	var all sync.WaitGroup
	errs := make([]error, n)
	for i := range n {
		all.Go(func() { errs[i] = f(i) })
	}
	all.Wait()
	return errors.Join(errs...)
}

// dial connects and says what to do.
func dial(address string, what byte) (net.Conn, error) {
	c, err := net.Dial("tcp", address)
	if err != nil {
		return nil, err
	}
	if _, err := c.Write(append(hello()[:len(hello()):len(hello())], what)); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// hello is the ClientHello that crypto/tls sends.
var hello = sync.OnceValue(func() []byte {
	r := new(recorder)
	_ = tls.Client(r, &tls.Config{ServerName: serverName, NextProtos: []string{"h2", "http/1.1"}}).Handshake()
	return r.written
})

// recorder is a connection that keeps what is written and has nothing to read.
type recorder struct {
	net.Conn
	written []byte
}

func (r *recorder) Write(b []byte) (int, error) {
	r.written = append(r.written, b...)
	return len(b), nil
}
func (r *recorder) Read([]byte) (int, error) { return 0, io.EOF }
func (r *recorder) Close() error             { return nil }

func (r *recorder) SetDeadline(time.Time) error      { return nil }
func (r *recorder) SetReadDeadline(time.Time) error  { return nil }
func (r *recorder) SetWriteDeadline(time.Time) error { return nil }

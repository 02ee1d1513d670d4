package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"syscall"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/connect"
	"github.com/rhizome-tunnel/rhizome/tunnel/relay"
)

const (
	// maxRefusals bounds how many clients are told at a time that there are
	// too many of them; the others are reset.
	maxRefusals = 64
	// refusalLog is how often a line says so.
	refusalLog = 10 * time.Second
)

// door is a listener and the connections that came in by it, which are at most
// max at a time.
type door struct {
	name   string // proxy or forward
	target string // of a forward
	max    int
	// serve owns the connection and has closed it when it returns. It resets
	// it when ctx ends.
	serve func(ctx context.Context, c net.Conn)
	// refuse does the same with one connection too many; nil resets it.
	refuse func(ctx context.Context, c net.Conn)
	log    *slog.Logger

	l        net.Listener
	accepted chan struct{} // closed when no more come in
	conns    sync.WaitGroup

	mu       sync.Mutex
	open     int // being served
	refusing int
	total    uint64 // served so far
	refused  uint64 // one too many
	failed   uint64
	loggedAt time.Time // of the last refusal that the log tells of
}

// proxyDoor is a door to an HTTP proxy.
func proxyDoor(h *connect.Handler, l net.Listener, max int, log *slog.Logger) *door {
	d := &door{name: "proxy", l: l, max: max, log: log, accepted: make(chan struct{})}
	own := *h
	own.Observe = func(*connect.Tunnel) func(error) { return d.count }
	d.serve = func(ctx context.Context, c net.Conn) { _ = own.ServeConn(ctx, c) } // logged by the Handler
	d.refuse = func(ctx context.Context, c net.Conn) {
		stop := context.AfterFunc(ctx, func() { _ = relay.Reset(c) })
		defer stop()
		_ = connect.WriteError(c, h.Name, &connect.Error{Reason: connect.ErrLimit, Detail: fmt.Sprintf("%d connections are open", max)})
	}
	return d
}

// forwardDoor is a door to one target.
func forwardDoor(f *forward, l net.Listener, max int, log *slog.Logger) *door {
	d := &door{name: "forward", target: f.target, l: l, max: max, log: log, accepted: make(chan struct{})}
	d.serve = func(ctx context.Context, c net.Conn) { d.count(f.serve(ctx, c)) }
	return d
}

// run accepts until the listener is closed. What it started may go on then, at
// most until ctx ends: see shutdown.
func (d *door) run(ctx context.Context) error {
	defer close(d.accepted)
	var pause time.Duration
	for {
		c, err := d.l.Accept()
		if err == nil {
			pause = 0
			relay.KeepAlive(c)
			d.enter(ctx, c)
			continue
		}
		if !passes(err) {
			return err
		}
		// As a rule descriptors have run out: connections will end.
		pause = min(max(2*pause, 5*time.Millisecond), time.Second)
		d.log.Error("accept failed", "addr", d.l.Addr().String(), "error", err, "pause", pause)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
	}
}

// passes reports whether Accept may succeed after err. What the kernel says may be
// of one connection, or of a lack of descriptors or memory: few errors are of the
// listener.
func passes(err error) bool {
	if errors.Is(err, net.ErrClosed) {
		return false
	}
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return errno != syscall.EBADF && errno != syscall.EINVAL && errno != syscall.ENOTSOCK
	}
	var temporary interface{ Temporary() bool }
	return errors.As(err, &temporary) && temporary.Temporary()
}

// enter serves c if there is room, and refuses it else. It does not block.
func (d *door) enter(ctx context.Context, c net.Conn) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.open < d.max {
		d.open++
		d.total++
		d.conns.Go(func() {
			defer d.leave(&d.open)
			d.serve(ctx, c)
		})
		return
	}
	d.refused++
	if now := time.Now(); now.Sub(d.loggedAt) >= refusalLog {
		d.loggedAt = now
		d.log.Warn("too many connections, refused", "addr", d.l.Addr().String(), "max", d.max, "refused", d.refused)
	}
	if d.refuse == nil || d.refusing == maxRefusals {
		_ = relay.Reset(c)
		return
	}
	d.refusing++
	d.conns.Go(func() {
		defer d.leave(&d.refusing)
		d.refuse(ctx, c)
	})
}

func (d *door) leave(n *int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	*n--
}

// count takes the outcome of a connection, or of a request of one.
func (d *door) count(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err != nil {
		d.failed++
	}
}

// doors are all ports for clients.
type doors []*door

// shutdown lets nobody in any more, waits until all connections have ended, but
// no longer than ctx and timeout allow (negative: ctx alone), and calls cut,
// which ends what is still open. It returns when nothing of the doors is left,
// with an error if something was cut off. It is for doors that run.
func (ds doors) shutdown(ctx context.Context, timeout time.Duration, cut func()) error {
	if timeout >= 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}
	for _, d := range ds {
		_ = d.l.Close()
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for _, d := range ds {
			<-d.accepted
			d.conns.Wait()
		}
	}()
	var err error
	select {
	case <-done:
	case <-ctx.Done():
		if n := ds.open(); n > 0 {
			err = fmt.Errorf("%d connections: %w", n, context.Cause(ctx))
		}
	}
	cut()
	<-done
	return err
}

// open counts the connections that are served.
func (ds doors) open() int {
	n := 0
	for _, s := range ds.status() {
		n += s.Open
	}
	return n
}

// doorStatus is a door on the page /doors.
type doorStatus struct {
	Door    string `json:"door"`
	Addr    string `json:"addr"`
	Target  string `json:"target,omitempty"`
	Open    int    `json:"open"`    // connections now
	Total   uint64 `json:"total"`   // connections so far
	Refused uint64 `json:"refused"` // one too many
	Failed  uint64 `json:"failed"`  // connections, or requests to the proxy, that ended with an error
}

func (ds doors) status() []doorStatus {
	list := make([]doorStatus, 0, len(ds))
	for _, d := range ds {
		d.mu.Lock()
		list = append(list, doorStatus{d.name, d.l.Addr().String(), d.target, d.open, d.total, d.refused, d.failed})
		d.mu.Unlock()
	}
	return list
}

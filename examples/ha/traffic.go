//go:build linux

package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rhizome-tunnel/rhizome/examples/internal/netlab"
	"github.com/rhizome-tunnel/rhizome/tunnel/relay"
	"golang.org/x/sys/unix"
)

// echoes answers on the target whatever comes, by TCP and UDP.
type echoes struct {
	tcp net.Listener
	udp net.PacketConn
}

func newEchoes(h *netlab.Host, at netip.AddrPort) (*echoes, error) {
	e := new(echoes)
	return e, h.Do(func() (err error) {
		if e.tcp, err = net.Listen("tcp", at.String()); err != nil {
			return err
		}
		e.udp, err = net.ListenPacket("udp", at.String())
		return err
	})
}

// run serves until ctx ends.
func (e *echoes) run(ctx context.Context) {
	var work sync.WaitGroup
	defer work.Wait()
	stop := context.AfterFunc(ctx, func() { e.tcp.Close(); e.udp.Close() })
	defer stop()
	work.Go(func() {
		b := make([]byte, 2048)
		for {
			n, from, err := e.udp.ReadFrom(b)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				_, _ = e.udp.WriteTo(b[:n], from)
			}
		}
	})
	for {
		c, err := e.tcp.Accept()
		if err != nil {
			return
		}
		work.Go(func() {
			defer context.AfterFunc(ctx, func() { c.Close() })()
			_, _ = io.Copy(c, c)
			_ = c.Close()
		})
	}
}

// beat is the UDP echo that tells an outage: a datagram every 10 ms.
type beat struct {
	conn net.PacketConn
	to   net.Addr

	mu  sync.Mutex
	got []time.Time // when each echo came
}

const beatInterval = 10 * time.Millisecond

func newBeat(h *netlab.Host, to netip.AddrPort) (*beat, error) {
	b := &beat{to: net.UDPAddrFromAddrPort(to)}
	return b, h.Do(func() (err error) {
		// Not bound to an address: each datagram has that of the route which
		// is in force.
		b.conn, err = net.ListenPacket("udp4", "0.0.0.0:0")
		return err
	})
}

func (b *beat) run(ctx context.Context) {
	var work sync.WaitGroup
	defer work.Wait()
	defer context.AfterFunc(ctx, func() { b.conn.Close() })()
	work.Go(func() {
		buf := make([]byte, 64)
		for {
			_, _, err := b.conn.ReadFrom(buf)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				b.mu.Lock()
				b.got = append(b.got, time.Now())
				b.mu.Unlock()
			}
		}
	})
	tick := time.NewTicker(beatInterval)
	defer tick.Stop()
	for seq := uint64(1); ; seq++ {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			_, _ = b.conn.WriteTo(binary.BigEndian.AppendUint64(nil, seq), b.to) // no route: no echo
		}
	}
}

// gap is the longest time without an echo from one moment to another, and when it
// began.
func (b *beat) gap(from, to time.Time) (longest time.Duration, since time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	last := from
	look := func(at time.Time) {
		if d := at.Sub(last); d > longest {
			longest, since = d, last
		}
		last = at
	}
	for _, at := range b.got {
		if !at.Before(from) && !at.After(to) {
			look(at)
		}
	}
	look(to)
	return longest, since
}

// streams are TCP connections that live through the events, each with a message
// on its way all the time.
type streams struct {
	conns []net.Conn
	lost  atomic.Int64
	why   atomic.Pointer[error] // the first was lost
	turns []atomic.Int64        // messages that came back, per connection
}

func newStreams(h *netlab.Host, to netip.AddrPort, n int) (*streams, error) {
	s := &streams{turns: make([]atomic.Int64, n)}
	for range n {
		c, err := dialOn(h, to, 5*time.Second)
		if err != nil {
			s.close()
			return nil, fmt.Errorf("connection to the target: %w", err)
		}
		s.conns = append(s.conns, c)
	}
	return s, nil
}

func (s *streams) close() {
	for _, c := range s.conns {
		_ = relay.Reset(c)
	}
}

// run sends and checks until ctx ends.
func (s *streams) run(ctx context.Context) {
	defer context.AfterFunc(ctx, s.close)()
	var work sync.WaitGroup
	for i, c := range s.conns {
		work.Go(func() {
			if err := s.talk(c, i); ctx.Err() == nil {
				s.lost.Add(1)
				s.why.CompareAndSwap(nil, &err)
			}
		})
	}
	work.Wait()
}

// talk has a message echoed again and again: it returns when the connection
// fails, or when what came back is not what was sent.
func (s *streams) talk(c net.Conn, i int) error {
	for n := uint64(1); ; n++ {
		sent := binary.BigEndian.AppendUint64(nil, n<<8|uint64(i))
		if _, err := c.Write(sent); err != nil {
			return err
		}
		got := make([]byte, len(sent))
		if _, err := io.ReadFull(c, got); err != nil {
			return err
		}
		if !slices.Equal(sent, got) {
			return fmt.Errorf("sent %x, got %x", sent, got)
		}
		s.turns[i].Add(1)
		time.Sleep(beatInterval)
	}
}

// alive waits until each connection has brought a message back since now, or is
// lost. It returns how many did not in time.
func (s *streams) alive(most time.Duration) (silent int) {
	before := make([]int64, len(s.turns))
	for i := range s.turns {
		before[i] = s.turns[i].Load()
	}
	for deadline := time.Now().Add(most); ; time.Sleep(beatInterval) {
		silent = 0
		for i := range s.turns {
			if s.turns[i].Load() < before[i]+2 { // one may have been under way
				silent++
			}
		}
		if silent == int(s.lost.Load()) || time.Now().After(deadline) {
			return silent
		}
	}
}

// dialOn opens a TCP connection from a host.
func dialOn(h *netlab.Host, to netip.AddrPort, timeout time.Duration) (c net.Conn, err error) {
	err = h.Do(func() error {
		c, err = net.DialTimeout("tcp4", to.String(), timeout)
		return err
	})
	return c, err
}

// firstSYN opens a connection and fails unless the first SYN was answered.
func firstSYN(h *netlab.Host, to netip.AddrPort) (time.Duration, error) {
	start := time.Now()
	c, err := dialOn(h, to, 10*time.Second)
	took := time.Since(start)
	if err != nil {
		return took, err
	}
	defer c.Close()
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		return took, err
	}
	var info *unix.TCPInfo
	if e := raw.Control(func(fd uintptr) { info, err = unix.GetsockoptTCPInfo(int(fd), unix.SOL_TCP, unix.TCP_INFO) }); e != nil || err != nil {
		return took, errors.Join(e, err)
	}
	if info.Total_retrans > 0 {
		return took, fmt.Errorf("%d SYNs were lost", info.Total_retrans)
	}
	return took, nil
}

package tunnel

import (
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/relay"
)

// conn is what a dial through the tunnel returns: a stream with the target's
// address, bytes that the target sent with the agent's answer, and the
// accounting of its cluster.
type conn struct {
	stream  stream
	prefix  *relay.Prefixed // reads early bytes first, then the stream
	early   atomic.Int64    // bytes of prefix that are left
	target  net.Addr
	cluster *cluster
	release func() // gives back what the dial had reserved
}

var (
	_ net.Conn          = (*conn)(nil)
	_ relay.CloseWriter = (*conn)(nil)
	_ relay.Resetter    = (*conn)(nil)
	_ relay.ReadWaiter  = (*conn)(nil)
	_ relay.ResetWaiter = (*conn)(nil)
)

func newConn(s stream, early []byte, target string, c *cluster, release func()) *conn {
	t := &conn{stream: s, target: targetAddr(target), cluster: c, release: sync.OnceFunc(release)}
	if len(early) > 0 {
		t.prefix = relay.NewPrefixed(s, early)
		t.early.Store(int64(len(early)))
	}
	return t
}

func (c *conn) Read(p []byte) (n int, err error) {
	if c.prefix != nil && c.early.Load() > 0 {
		n, err = c.prefix.Read(p)
		c.early.Add(-int64(n))
	} else {
		n, err = c.stream.Read(p)
	}
	c.cluster.counters.fromAgents.Add(int64(n))
	return n, err
}

// WaitRead is for relay.ReadWaiter.
func (c *conn) WaitRead() error {
	if c.early.Load() > 0 {
		return nil
	}
	return c.stream.WaitRead()
}

// WaitReset is for relay.ResetWaiter.
func (c *conn) WaitReset() error {
	return c.stream.WaitReset()
}

func (c *conn) Write(p []byte) (int, error) {
	n, err := c.stream.Write(p)
	c.cluster.counters.toAgents.Add(int64(n))
	return n, err
}

// CloseWrite half-closes: the target reads the end of the data.
func (c *conn) CloseWrite() error { return c.stream.CloseWrite() }

// Close ends both directions; the target's writes fail from then on.
func (c *conn) Close() error {
	c.release()
	if c.prefix != nil {
		return c.prefix.Close()
	}
	return c.stream.Close()
}

// Reset aborts both directions; the target sees a reset.
func (c *conn) Reset() error {
	c.release()
	if c.prefix != nil {
		return c.prefix.Reset()
	}
	return c.stream.Reset()
}

func (c *conn) LocalAddr() net.Addr  { return c.stream.LocalAddr() }
func (c *conn) RemoteAddr() net.Addr { return c.target }

func (c *conn) SetDeadline(t time.Time) error {
	if c.prefix != nil {
		return c.prefix.SetDeadline(t)
	}
	return c.stream.SetDeadline(t)
}

func (c *conn) SetReadDeadline(t time.Time) error {
	if c.prefix != nil {
		return c.prefix.SetReadDeadline(t)
	}
	return c.stream.SetReadDeadline(t)
}

func (c *conn) SetWriteDeadline(t time.Time) error { return c.stream.SetWriteDeadline(t) }

// targetAddr is the address of a target as it was asked for.
type targetAddr string

func (targetAddr) Network() string  { return "tcp" }
func (a targetAddr) String() string { return string(a) }

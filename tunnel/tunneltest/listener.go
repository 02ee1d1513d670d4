package tunneltest

import (
	"net"
	"os"
	"time"
)

// listener is what Network.Listen returns. Its state is guarded by the network's
// lock.
type listener struct {
	n      *Network
	addrs  []net.Addr // at least one
	queue  []*Conn
	closed bool
	by     time.Time
}

func (l *listener) Addr() net.Addr { return l.addrs[0] }

// SetDeadline works as that of a *net.TCPListener.
func (l *listener) SetDeadline(t time.Time) error {
	l.n.lock()
	defer l.n.mu.Unlock()
	if l.closed {
		return l.opError("set", net.ErrClosed)
	}
	l.by = t
	l.n.cond.Broadcast()
	return nil
}

func (l *listener) Accept() (net.Conn, error) {
	l.n.lock()
	defer l.n.mu.Unlock()
	for {
		if l.closed {
			return nil, l.opError("accept", net.ErrClosed)
		}
		if !l.by.IsZero() && arrived(l.by) {
			return nil, l.opError("accept", os.ErrDeadlineExceeded)
		}
		if len(l.queue) > 0 {
			c := l.queue[0]
			l.queue[0] = nil
			l.queue = l.queue[1:]
			l.n.cond.Broadcast() // there is room for a dial that waits
			return c, nil
		}
		l.wait()
	}
}

func (l *listener) wait() {
	if !l.by.IsZero() {
		t := time.AfterFunc(time.Until(l.by), l.n.wake)
		defer t.Stop()
	}
	l.n.cond.Wait()
}

// Close also resets what was never accepted, as a kernel does.
func (l *listener) Close() error {
	l.n.lock()
	if l.closed {
		l.n.mu.Unlock()
		return l.opError("close", net.ErrClosed)
	}
	l.closed = true
	for _, a := range l.addrs {
		delete(l.n.listeners, key(a))
	}
	queue := l.queue
	l.queue = nil
	l.n.cond.Broadcast()
	l.n.mu.Unlock()
	for _, c := range queue {
		c.Reset()
	}
	return nil
}

func (l *listener) opError(op string, err error) error {
	return &net.OpError{Op: op, Net: l.Addr().Network(), Addr: l.Addr(), Err: err}
}

package proxyproto

import (
	"bytes"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/relay"
	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

func TestConnCopy(t *testing.T) {
	a, b := tcpPair(t)
	limit(a, b)
	c := NewConn(b, &Options{Default: Require})
	mustWrite(t, a, string(wire(t, outerHeader, "early")))
	if err := c.ReadHeader(); err != nil {
		t.Fatal(err)
	}
	mustWrite(t, a, "+late")
	mustCloseWrite(t, a)
	var out bytes.Buffer
	if n, err := io.Copy(&out, c); n != 10 || err != nil || out.String() != "early+late" {
		t.Errorf("Copy = %d, %v, %q", n, err, &out)
	}
	if n, err := io.Copy(c, struct{ io.Reader }{strings.NewReader("answer")}); n != 6 || err != nil {
		t.Errorf("Copy = %d, %v", n, err)
	}
	mustRead(t, a, "answer")

	boom := errors.New("boom")
	c = NewConn(&scripted{data: wire(t, outerHeader, "data"), piece: 99}, &Options{Default: Require})
	if n, err := c.WriteTo(badWriter{boom}); n != 1 || err != boom {
		t.Errorf("WriteTo = %d, %v; want 1, boom", n, err)
	}
	c = NewConn(&scripted{data: []byte("data")}, &Options{Default: Require})
	if n, err := c.WriteTo(io.Discard); n != 0 || !errors.Is(err, ErrNoHeader) {
		t.Errorf("WriteTo = %d, %v; want ErrNoHeader", n, err)
	}
}

// TestUnwrap gives the socket only when no header can be in the way.
func TestUnwrap(t *testing.T) {
	for _, tc := range []struct {
		name   string
		o      *Options
		in     string
		before func(*Conn)
		unread string
		below  bool
	}{
		{"headers read", &Options{Default: Require}, string(wire(t, outerHeader, "data")), func(c *Conn) { c.ReadHeader() }, "data", true},
		{"nothing unread", &Options{Default: Require}, string(wire(t, outerHeader)), func(c *Conn) { c.ReadHeader() }, "", true},
		{"some data read", &Options{Default: Require}, string(wire(t, outerHeader, "data")), func(c *Conn) { c.Read(make([]byte, 1)) }, "ata", true},
		{"no header", &Options{Default: Accept}, "data", func(c *Conn) { c.ReadHeader() }, "data", true},
		{"looked", nil, "some long data", func(c *Conn) { c.Read(make([]byte, 4)) }, " long da", true},
		{"looked behind an inner header", &Options{Inner: Require}, string(wire(t, innerHeader, "data")), func(c *Conn) { c.ReadHeader() }, "data", true},
		{"pending", &Options{Default: Require}, string(wire(t, outerHeader, "data")), func(*Conn) {}, "", false},
		{"half pending", &Options{Default: Require, Inner: Require}, string(wire(t, outerHeader, innerHeader, "data")), func(c *Conn) { c.RemoteAddr() }, "", false},
		{"not looked", nil, "data", func(*Conn) {}, "", false},
		{"not looked enough", nil, "PR", func(c *Conn) { c.Read(make([]byte, 9)) }, "", false},
		{"failed", &Options{Default: Require}, "data", func(c *Conn) { c.ReadHeader() }, "", false},
		{"refused", nil, string(wire(t, outerHeader)), func(c *Conn) { c.Read(make([]byte, 9)) }, "", false},
	} {
		raw := &scripted{data: []byte(tc.in), piece: 99}
		c := NewConn(raw, tc.o)
		tc.before(c)
		unread, below := c.Unwrap()
		if string(unread) != tc.unread || (below == net.Conn(raw)) != tc.below {
			t.Errorf("%s: Unwrap = %q, %T", tc.name, unread, below)
		}
		if _, ok := below.(relay.Unwrapper); ok {
			t.Errorf("%s: %T is an Unwrapper", tc.name, below)
		}
		if again, b := c.Unwrap(); len(again) > 0 || b != below {
			t.Errorf("%s: Unwrap again = %q, %T", tc.name, again, b)
		}
	}
}

// TestUnwrapDoesNotWait unwraps while another goroutine waits for a header, and
// for the data that might be one.
func TestUnwrapDoesNotWait(t *testing.T) {
	for name, o := range map[string]*Options{"header": {Default: Require}, "look": nil} {
		t.Run(name, func(t *testing.T) {
			tunneltest.Bubble(t, func(t *testing.T) {
				a, b := tunneltest.Pipe()
				defer a.Close()
				defer b.Close()
				c := NewConn(b, o)
				read := make(chan error, 1)
				go func() { _, err := io.ReadFull(c, make([]byte, 4)); read <- err }()
				synctest.Wait()
				start := time.Now()
				unread, view := c.Unwrap()
				if view == b || view == net.Conn(c) || len(unread) > 0 || time.Since(start) != 0 {
					t.Errorf("Unwrap = %q, %T, after %v", unread, view, time.Since(start))
				}
				if o != nil {
					mustWrite(t, a, string(wire(t, outerHeader)))
				}
				mustWrite(t, a, "data")
				if err := <-read; err != nil {
					t.Fatal(err)
				}
				mustWrite(t, a, "more")
				mustRead(t, view, "more")
				if unread, below := c.Unwrap(); len(unread) > 0 || below != b {
					t.Errorf("Unwrap afterwards = %q, %T", unread, below)
				}
			})
		})
	}
}

// TestRelay relays with the header pending, read, refused and absent.
func TestRelay(t *testing.T) {
	for _, tc := range []struct {
		name  string
		o     *Options
		in    []any
		ready bool
		err   error
	}{
		{"pending", &Options{Default: Require, Inner: Require}, []any{outerHeader, innerHeader, "question"}, false, nil},
		{"read", &Options{Default: Require, Inner: Require}, []any{outerHeader, innerHeader, "question"}, true, nil},
		{"no header", nil, []any{"question"}, false, nil},
		{"missing", &Options{Default: Require}, []any{"question"}, false, ErrNoHeader},
		{"refused", nil, []any{outerHeader, "question"}, false, ErrRefused},
	} {
		t.Run(tc.name, func(t *testing.T) {
			peer, b := tcpPair(t)
			target, leg := tcpPair(t)
			limit(peer, target)
			mustWrite(t, peer, string(wire(t, tc.in...)))
			c := NewConn(b, tc.o)
			if tc.ready {
				if err := c.ReadHeader(); err != nil {
					t.Fatal(err)
				}
			}
			done := make(chan error, 1)
			go func() { done <- relay.Relay(t.Context(), c, leg, nil) }()
			if tc.err != nil {
				if err := <-done; !errors.Is(err, tc.err) {
					t.Errorf("Relay: %v, want %v", err, tc.err)
				}
				if b, err := io.ReadAll(target); len(b) > 0 || err == nil {
					t.Errorf("target read %q, %v; want a reset", b, err)
				}
				return
			}
			mustRead(t, target, "question")
			mustCloseWrite(t, peer)
			mustEOF(t, target)
			mustWrite(t, target, "answer")
			mustRead(t, peer, "answer")
			mustCloseWrite(t, target)
			mustEOF(t, peer)
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
	}
}

// TestUndecided looks at what Unwrap returns while a header is awaited.
func TestUndecided(t *testing.T) {
	a, b := tcpPair(t)
	limit(a)
	c := NewConn(b, nil)
	_, view := c.Unwrap()
	if view.(interface{ NetConn() net.Conn }).NetConn() != c {
		t.Error("NetConn")
	}
	mustCloseWrite(t, view)
	mustEOF(t, a)
	if err := relay.Reset(view); err != nil {
		t.Error(err)
	}
	if _, err := view.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
}

package proxyproto

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// listen opens a listener that the end of the test closes.
func listen(t testing.TB, o Options) *Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return &Listener{Listener: l, Options: o}
}

func accept(t testing.TB, l net.Listener) *Conn {
	t.Helper()
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	limit(c)
	return c.(*Conn)
}

func TestDialer(t *testing.T) {
	say := func(h *Header) func(context.Context, net.Conn) (*Header, error) {
		return func(context.Context, net.Conn) (*Header, error) { return h, nil }
	}
	tlvs := &Header{Version: 2, Source: client, Destination: front, TLVs: []TLV{{TypeAuthority, []byte("a.example")}}}
	v1 := &Header{Version: 1, Source: client, Destination: front}
	for _, tc := range []struct {
		name   string
		d      *Dialer
		policy Policy
		want   *Header
	}{
		{"zero", &Dialer{}, Require, &Header{Version: 2, Local: true}},
		{"v1", &Dialer{Header: say(v1), Timeout: -1}, Require, v1},
		{"v2 with TLVs", &Dialer{Header: say(tlvs)}, Require, tlvs},
		{"none", &Dialer{Header: say(nil)}, Refuse, nil},
		{"of a Conn", &Dialer{Header: func(context.Context, net.Conn) (*Header, error) {
			return HeaderOf(NewConn(&scripted{data: wire(t, v1), piece: 99}, &Options{Default: Require})), nil
		}}, Require, outerHeader},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l := listen(t, Options{Default: tc.policy})
			c, err := tc.d.DialContext(t.Context(), "tcp", l.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			limit(c)
			if _, ok := c.(*net.TCPConn); !ok {
				t.Errorf("a %T", c)
			}
			s := accept(t, l)
			mustWrite(t, s, "server first") // Accept and Write wait for no header
			mustRead(t, c, "server first")
			if diff := cmp.Diff(tc.want, s.Header(), cmpopts.EquateEmpty()); diff != "" {
				t.Error(diff)
			}
			mustWrite(t, c, "data")
			mustCloseWrite(t, c)
			mustRead(t, s, "data")
			mustEOF(t, s)
			mustWrite(t, s, "late")
			mustCloseWrite(t, s)
			mustRead(t, c, "late")
			mustEOF(t, c)
		})
	}
}

// TestDialerConn runs the suite over what Dialer and Listener make.
func TestDialerConn(t *testing.T) {
	tunneltest.TestConn(t, func() (net.Conn, net.Conn, func(), error) {
		l := listen(t, Options{Default: Require})
		c, err := new(Dialer).DialContext(t.Context(), "tcp", l.Addr().String())
		if err != nil {
			return nil, nil, nil, err
		}
		s, err := l.Accept()
		if err != nil {
			return nil, nil, nil, err
		}
		l.Close()
		if err := s.(*Conn).ReadHeader(); err != nil {
			return nil, nil, nil, err
		}
		return c, s, func() { c.Close(); s.Close() }, nil
	})
}

// TestDialerFails wants no connection left behind whatever goes wrong.
func TestDialerFails(t *testing.T) {
	boom := errors.New("boom")
	for _, tc := range []struct {
		name   string
		header func(context.Context, net.Conn) (*Header, error)
		want   error
	}{
		{"Header", func(context.Context, net.Conn) (*Header, error) { return nil, boom }, boom},
		{"invalid", func(context.Context, net.Conn) (*Header, error) { return &Header{}, nil }, ErrInvalid},
		{"closed", func(_ context.Context, c net.Conn) (*Header, error) { c.Close(); return outerHeader, nil }, net.ErrClosed},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n := new(tunneltest.Network)
			l, err := n.Listen("tcp", "backend:443")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			d := &Dialer{Dial: n.Dial, Header: tc.header}
			if c, err := d.DialContext(t.Context(), "tcp", "backend:443"); c != nil || !errors.Is(err, tc.want) {
				t.Errorf("%v, %v; want %v", c, err, tc.want)
			}
			s, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			limit(s)
			if b, _ := io.ReadAll(s); len(b) > 0 {
				t.Errorf("%q was written", b)
			}
			s.Close()
			if left := n.Conns(); len(left) > 0 {
				t.Errorf("left open: %v", left)
			}
		})
	}
	d := &Dialer{}
	if _, err := d.DialContext(t.Context(), "tcp", "127.0.0.1:1"); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Error(err)
	}
}

// TestDialerTimeout has a peer that takes nothing, and wants its own bound or
// the context's, whichever is first.
func TestDialerTimeout(t *testing.T) {
	for _, tc := range []struct {
		name       string
		limit, ctx time.Duration
		want       time.Duration
	}{
		{"default", 0, time.Hour, 20 * time.Second},
		{"own", 3 * time.Second, time.Hour, 3 * time.Second},
		{"context", 0, 2 * time.Second, 2 * time.Second},
		{"only the context", -1, time.Hour, time.Hour},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tunneltest.Bubble(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), tc.ctx)
				defer cancel()
				near, far := net.Pipe() // holds nothing
				defer far.Close()
				d := &Dialer{Timeout: tc.limit, Dial: func(context.Context, string, string) (net.Conn, error) { return near, nil }}
				start := time.Now()
				_, err := d.DialContext(ctx, "tcp", "backend:443")
				if took := time.Since(start); took != tc.want || !errors.Is(err, os.ErrDeadlineExceeded) || !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("%v after %v, want a timeout after %v", err, took, tc.want)
				}
				if _, err := near.Write([]byte("x")); !errors.Is(err, io.ErrClosedPipe) {
					t.Errorf("left open: %v", err)
				}
			})
		})
	}
	t.Run("cancelled", func(t *testing.T) {
		near, far := net.Pipe()
		defer far.Close()
		cause := errors.New("gone")
		ctx, cancel := context.WithCancelCause(t.Context())
		d := &Dialer{Dial: func(context.Context, string, string) (net.Conn, error) { return near, nil },
			Header: func(context.Context, net.Conn) (*Header, error) { cancel(cause); return outerHeader, nil }}
		if _, err := d.DialContext(ctx, "tcp", "backend:443"); !errors.Is(err, cause) || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Error(err)
		}
	})
}

// TestAcceptDoesNotWait for the header of a silent client.
func TestAcceptDoesNotWait(t *testing.T) {
	l := listen(t, Options{Default: Require})
	silent, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	accept(t, l)
	c, err := new(Dialer).DialContext(t.Context(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if h := accept(t, l).Header(); h == nil || !h.Local {
		t.Errorf("%+v", h)
	}
	l.Close()
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
}

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rhizome-tunnel/rhizome/examples/internal/clitest"
	"github.com/rhizome-tunnel/rhizome/tunnel/connect"
	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// TestDrain stops a program with an open connection by each way: it waits for
// them, is not ready meanwhile, and a second signal does not wait.
func TestDrain(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	echo := listen(t, func(c net.Conn) { _, _ = io.Copy(c, c) })
	for _, end := range []string{"finish", "second signal", "timeout"} {
		t.Run(end, func(t *testing.T) {
			args := []string{"--listen", "127.0.0.1:0", "--forward", "127.0.0.1:0=" + echo}
			if end == "timeout" {
				args = append(args, "--drain-timeout", "50ms")
			}
			p := w.start(args...)
			byProxy, err := (&connect.Dialer{Address: p.Addr("proxy")}).DialContext(t.Context(), "tcp", echo)
			if err != nil {
				t.Fatal(err)
			}
			defer byProxy.Close()
			byForward, err := net.Dial("tcp", forwardAddr(p, echo))
			if err != nil {
				t.Fatal(err)
			}
			defer byForward.Close()
			conns := []net.Conn{byProxy, byForward}
			for _, c := range conns {
				mustEcho(t, c)
			}
			// A conn that waits for the next request is not waited for.
			idle := clitest.Client(t, &http.Transport{Proxy: through(t, p).Transport.(*http.Transport).Proxy})
			if status, body := clitest.Get(t, idle, "http://"+w.target); status != 200 {
				t.Fatalf("%d %s", status, body)
			}

			p.Drain()
			p.Find("draining")
			switch end {
			case "finish":
				eventually(t, p, 503, "draining")
				if c, err := net.Dial("tcp", p.Addr("proxy")); err == nil {
					c.Close()
					t.Error("it lets somebody in while it drains")
				}
				for _, c := range conns {
					mustEcho(t, c)
					_ = c.(interface{ CloseWrite() error }).CloseWrite()
					if b, err := io.ReadAll(c); len(b) > 0 || err != nil {
						t.Errorf("while draining: %q %v", b, err)
					}
				}
				if err := p.Wait(); err != nil {
					t.Errorf("drain: %v", err)
				}
				return
			case "second signal":
				clitest.Eventually(t, func() error { // the idle one is gone
					if _, body := page(t, p, "/doors"); strings.Count(body, `"open": 1`) != 2 {
						return errors.New(body)
					}
					return nil
				})
				p.Abort()
			}
			if err := p.Wait(); err == nil || !strings.Contains(err.Error(), "the rest was cut off: ") || !strings.Contains(err.Error(), " connections: context ") {
				t.Errorf("got %v", err)
			}
			for _, c := range conns {
				if _, err := io.ReadAll(c); err == nil {
					t.Error("what was cut off ended as if it were whole")
				}
			}
		})
	}
}

func mustEcho(t *testing.T, c net.Conn) {
	t.Helper()
	b := make([]byte, 4)
	if _, err := io.WriteString(c, "ping"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, b); string(b) != "ping" || err != nil {
		t.Fatalf("echo: %q %v", b, err)
	}
}

// TestMaxConnections has one connection too many at each door.
func TestMaxConnections(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	echo := listen(t, func(c net.Conn) { _, _ = io.Copy(c, c) })
	p := w.start("--listen", "127.0.0.1:0", "--forward", "127.0.0.1:0="+echo, "--max-connections", "1")
	d := &connect.Dialer{Address: p.Addr("proxy")}
	byProxy, err := d.DialContext(t.Context(), "tcp", echo)
	if err != nil {
		t.Fatal(err)
	}
	defer byProxy.Close()
	byForward, err := net.Dial("tcp", forwardAddr(p, echo))
	if err != nil {
		t.Fatal(err)
	}
	defer byForward.Close()
	mustEcho(t, byForward)

	if _, err := d.DialContext(t.Context(), "tcp", echo); !errors.Is(err, connect.ErrLimit) {
		t.Errorf("a second connection to the proxy: %v", err)
	}
	second, err := net.Dial("tcp", forwardAddr(p, echo))
	if err == nil {
		_, err = second.Read(make([]byte, 1))
		second.Close()
	}
	if err == nil || err == io.EOF {
		t.Errorf("a second connection to the forward: %v, want a reset", err)
	}
	p.Find("too many connections, refused")
	if _, body := page(t, p, "/doors"); strings.Count(body, `"refused": 1`) != 2 {
		t.Errorf("/doors: %s", body)
	}
	mustEcho(t, byProxy)
	mustEcho(t, byForward)

	// There is room again.
	byForward.Close()
	clitest.Eventually(t, func() error {
		c, err := net.Dial("tcp", forwardAddr(p, echo))
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.Write([]byte("x"))
		if err == nil {
			_, err = io.ReadFull(c, make([]byte, 1))
		}
		return err
	})
}

// TestRefusals floods a door that is full: so many are told, the others reset,
// and the log has a line every ten seconds.
func TestRefusals(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		n := new(tunneltest.Network)
		l, err := n.Listen("tcp", "127.0.0.1:1")
		if err != nil {
			t.Fatal(err)
		}
		logs := clitest.NewOutput(t)
		d := proxyDoor(&connect.Handler{}, l, 1, slog.New(slog.NewJSONHandler(logs, nil)))
		ctx, cut := context.WithCancel(t.Context())
		var wait sync.WaitGroup
		wait.Go(func() { _ = d.run(ctx) })
		var told, reset atomic.Int32
		for i := range maxRefusals + 11 {
			c, err := n.Dial(t.Context(), "tcp", "127.0.0.1:1")
			if err != nil {
				t.Fatal(err)
			}
			if i == 0 {
				defer c.Close() // in the door, silently
				continue
			}
			wait.Go(func() {
				defer c.Close()
				switch r, err := http.ReadResponse(bufio.NewReader(c), nil); {
				case err == nil && r.StatusCode == http.StatusTooManyRequests:
					r.Body.Close()
					told.Add(1)
				case errors.Is(err, syscall.ECONNRESET):
					reset.Add(1)
				default:
					t.Errorf("refused with %v %v", r, err)
				}
				time.Sleep(time.Second / 2) // WriteError waits for it
			})
		}
		synctest.Wait() // all are in
		if err := (doors{d}).shutdown(t.Context(), time.Second, cut); err == nil || !strings.HasPrefix(err.Error(), "1 connections: ") {
			t.Errorf("shutdown: %v", err)
		}
		wait.Wait()
		if told.Load() != maxRefusals || reset.Load() != 10 {
			t.Errorf("%d were told and %d reset, want %d and 10", told.Load(), reset.Load(), maxRefusals)
		}
		if n := strings.Count(logs.String(), "too many connections"); n != 1 {
			t.Errorf("%d log lines", n)
		}
	})
}

// brokenListener fails so often with failure, and then for good.
type brokenListener struct {
	net.Listener
	times          int
	failure, final error
}

type temporaryError struct{}

func (temporaryError) Error() string   { return "out of patience" }
func (temporaryError) Temporary() bool { return true }

func (l *brokenListener) Accept() (net.Conn, error) {
	if l.times--; l.times < 0 {
		return nil, l.final
	}
	return nil, l.failure
}

func (l *brokenListener) Addr() net.Addr { return &net.TCPAddr{} }

// TestAcceptFails has the errors that pass, as package net has them, and those
// that do not.
func TestAcceptFails(t *testing.T) {
	accept := func(err error) error {
		return &net.OpError{Op: "accept", Net: "tcp", Err: os.NewSyscallError("accept4", err)}
	}
	broken := errors.New("broken")
	for _, tc := range []struct{ failure, final error }{
		{fmt.Errorf("accept: %w", temporaryError{}), broken},
		{accept(syscall.EMFILE), accept(syscall.EINVAL)},
		{accept(syscall.ENOBUFS), accept(syscall.EBADF)},
		{accept(syscall.ENOMEM), accept(syscall.ENOTSOCK)},
		{accept(syscall.EPERM), &net.OpError{Op: "accept", Net: "tcp", Err: net.ErrClosed}}, // of a firewall
		{accept(syscall.EHOSTUNREACH), io.EOF},
	} {
		t.Run(tc.failure.Error(), func(t *testing.T) {
			tunneltest.Bubble(t, func(t *testing.T) {
				logs := clitest.NewOutput(t)
				l := &brokenListener{times: 10, failure: tc.failure, final: tc.final}
				d := forwardDoor(&forward{}, l, 1, slog.New(slog.NewJSONHandler(logs, nil)))
				start := time.Now()
				if err := d.run(t.Context()); err != tc.final {
					t.Errorf("got %v, want %v", err, tc.final)
				}
				if got, want := time.Since(start), 1275*time.Millisecond+2*time.Second; got != want {
					t.Errorf("after %v, want %v", got, want)
				}
				if n := strings.Count(logs.String(), "accept failed"); n != 10 {
					t.Errorf("%d log lines", n)
				}
			})
		})
	}
}

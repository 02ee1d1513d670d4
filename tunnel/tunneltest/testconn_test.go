package tunneltest

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/nettest"
)

func pipePair() (a, b net.Conn, stop func(), err error) {
	a, b = Pipe()
	return a, b, func() { a.Close(); b.Close() }, nil
}

func tcpPair() (a, b net.Conn, stop func(), err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, nil, nil, err
	}
	defer l.Close()
	if a, err = net.Dial("tcp", l.Addr().String()); err != nil {
		return nil, nil, nil, err
	}
	if b, err = l.Accept(); err != nil {
		a.Close()
		return nil, nil, nil, err
	}
	return a, b, func() { a.Close(); b.Close() }, nil
}

// overTLS puts TLS on the pairs of mp, without a handshake: TestConn does that.
func overTLS(t *testing.T, mp nettest.MakePipe) nettest.MakePipe {
	ca := newTestCA(t)
	crt, err := ca.Issue(CertOptions{DNS: []string{"server"}})
	if err != nil {
		t.Fatal(err)
	}
	return func() (net.Conn, net.Conn, func(), error) {
		a, b, stop, err := mp()
		if err != nil {
			return nil, nil, nil, err
		}
		client := tls.Client(a, &tls.Config{RootCAs: ca.Pool(), ServerName: "server"})
		server := tls.Server(b, &tls.Config{Certificates: []tls.Certificate{crt.TLS}})
		return client, server, stop, nil
	}
}

func TestPipe(t *testing.T)        { TestConn(t, pipePair) }
func TestTCP(t *testing.T)         { TestConn(t, tcpPair) }
func TestTLSOverPipe(t *testing.T) { TestConn(t, overTLS(t, pipePair)) }
func TestTLSOverTCP(t *testing.T)  { TestConn(t, overTLS(t, tcpPair)) }

func TestNetworkConn(t *testing.T) {
	for _, address := range [][2]string{{"tcp", "server:443"}, {"unix", "/run/server.sock"}} {
		t.Run(address[0], func(t *testing.T) {
			n := new(Network)
			n.SetDelay("", "", time.Millisecond) // the delayed path is the more intricate one
			l, err := n.Listen(address[0], address[1])
			if err != nil {
				t.Fatal(err)
			}
			TestConn(t, func() (net.Conn, net.Conn, func(), error) {
				a, err := n.Host("client").Dial(context.Background(), address[0], address[1])
				if err != nil {
					return nil, nil, nil, err
				}
				b, err := l.Accept()
				return a, b, func() { a.Close(); b.Close() }, err
			})
			l.Close()
			if open := n.Conns(); len(open) != 0 {
				t.Errorf("%d ends are open", len(open))
			}
		})
	}
}

// A wrapper that says what it wraps is TLS too.
type netConner struct{ net.Conn }

func (c netConner) NetConn() net.Conn { return c.Conn }

func TestTLSIsFound(t *testing.T) {
	a, b, stop, err := overTLS(t, pipePair)()
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	for _, c := range []net.Conn{a, b, netConner{a}, netConner{netConner{b}}} {
		if tlsConn(c) == nil {
			t.Errorf("%T: TLS was not found", c)
		}
	}
	plain, _ := Pipe()
	for _, c := range []net.Conn{plain, netConner{plain}, nil, netConner{nil}} {
		if tlsConn(c) != nil {
			t.Errorf("%T: TLS was found", c)
		}
	}
}

func TestMakePipeErrors(t *testing.T) {
	broken := errors.New("no pipe today")
	mp := func() (net.Conn, net.Conn, func(), error) { return nil, nil, nil, broken }
	if _, err := probe(mp); err != broken {
		t.Errorf("probe: %v", err)
	}
	if err := runCheck(mp, false, time.Second, checkHalfClose); !errors.Is(err, broken) {
		t.Errorf("runCheck: %v", err)
	}
	if _, _, _, err := handshaken(mp)(); err != broken {
		t.Errorf("handshaken: %v", err)
	}
	// A handshake that fails closes the pair.
	var closed atomic.Bool
	_, _, _, err := handshaken(func() (net.Conn, net.Conn, func(), error) {
		a, b, stop, err := pipePair()
		return tls.Client(a, &tls.Config{ServerName: "x"}), tls.Client(b, &tls.Config{ServerName: "x"}),
			func() { closed.Store(true); stop() }, err
	})()
	if err == nil || !closed.Load() {
		t.Errorf("handshake of two clients: %v, pair closed: %v", err, closed.Load())
	}
}

func TestRunCheckGivesUp(t *testing.T) {
	read := func(a, b net.Conn) error { _, err := a.Read(make([]byte, 1)); return err }
	err := runCheck(pipePair, false, time.Millisecond, read)
	if err == nil || !strings.Contains(err.Error(), "was blocked for") || !strings.Contains(err.Error(), "closed") {
		t.Errorf("a check that blocks until its pair is closed: %v", err)
	}
	release := make(chan struct{})
	defer close(release)
	err = runCheck(pipePair, false, time.Millisecond, func(a, b net.Conn) error { <-release; return nil })
	if err == nil || !strings.Contains(err.Error(), "even though") {
		t.Errorf("a check that blocks for ever: %v", err)
	}
	err = runCheck(pipePair, true, time.Second, func(a, b net.Conn) error { panic("ouch") })
	if err == nil || !strings.Contains(err.Error(), "panic: ouch") {
		t.Errorf("a check that panics: %v", err)
	}
}

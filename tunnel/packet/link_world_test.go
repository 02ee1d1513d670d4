package packet

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// linkWorld is a server on a network of its own, and what clients need.
type linkWorld struct {
	*testing.T
	net    tunneltest.Network
	ca     *tunneltest.CA
	server *Server
	echo   atomic.Int64 // packets that were sent back
	log    *strings.Builder
	logMu  sync.Mutex
}

func (w *linkWorld) Write(p []byte) (int, error) {
	w.logMu.Lock()
	defer w.logMu.Unlock()
	return w.log.Write(p)
}

func (w *linkWorld) logged() string {
	w.logMu.Lock()
	defer w.logMu.Unlock()
	return w.log.String()
}

// newLinkWorld serves at server:443; its links send back what comes.
func newLinkWorld(t *testing.T, change func(*Server)) *linkWorld {
	t.Helper()
	w := &linkWorld{T: t, log: new(strings.Builder)}
	var err error
	if w.ca, err = tunneltest.NewCA("test"); err != nil {
		t.Fatal(err)
	}
	cert, err := w.ca.Issue(tunneltest.CertOptions{DNS: []string{"server"}})
	if err != nil {
		t.Fatal(err)
	}
	w.server = &Server{
		TLS: &tls.Config{
			Certificates: []tls.Certificate{cert.TLS}, ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: w.ca.Pool(),
		},
		Auth:   Auth("a", nil, nil),
		Hello:  tunHello(),
		Admit:  func(context.Context, Identity, Hello) (ServeFunc, error) { return w.sendBack, nil },
		Logger: slog.New(slog.NewTextHandler(w, nil)),
	}
	if change != nil {
		change(w.server)
	}
	w.serve("server:443")
	t.Cleanup(func() { w.server.Close() })
	return w
}

func (w *linkWorld) listen(address string) net.Listener {
	w.Helper()
	l, err := w.net.Listen("tcp", address)
	if err != nil {
		w.Fatal(err)
	}
	return l
}

func (w *linkWorld) serve(address string) (ended chan error) {
	w.Helper()
	l := w.listen(address)
	ended = make(chan error, 1)
	go func() { ended <- w.server.Serve(l) }()
	return ended
}

// sendBack serves a link by sending back what comes.
func (w *linkWorld) sendBack(ctx context.Context, c *Conn) error {
	var work sync.WaitGroup
	defer work.Wait()
	work.Go(func() { _ = c.Run(ctx) })
	var b Batch
	for {
		if err := c.ReadBatch(&b); err != nil {
			return err
		}
		w.echo.Add(int64(b.Len()))
		if err := c.WriteBatch(&b); err != nil {
			return err
		}
	}
}

func (w *linkWorld) tlsFor(o tunneltest.CertOptions) *tls.Config {
	w.Helper()
	cert, err := w.ca.Issue(o)
	if err != nil {
		w.Fatal(err)
	}
	return &tls.Config{RootCAs: w.ca.Pool(), Certificates: []tls.Certificate{cert.TLS}}
}

// client is one of cluster a by certificate, whose links wait in ReadBatch.
func (w *linkWorld) client(name string, change func(*Client)) *Client {
	w.Helper()
	k := &Client{
		Dial: func(ctx context.Context) (net.Conn, error) {
			return w.net.Host(name).Dial(ctx, "tcp", "server:443")
		},
		TLS: w.tlsFor(tunneltest.CertOptions{CommonName: name, Cluster: "a", Client: true}), Host: "server:443",
		Hello: Hello{Mode: TUN, Name: name, Offload: OffloadAll},
		Serve: func(ctx context.Context, c *Conn) error { return w.wait(ctx, c, nil) },
	}
	if change != nil {
		change(k)
	}
	return k
}

// wait runs a link and reads it to its end.
func (w *linkWorld) wait(ctx context.Context, c *Conn, each func(Frame)) error {
	var work sync.WaitGroup
	defer work.Wait()
	work.Go(func() { _ = c.Run(ctx) })
	return <-linkDrain(c, each)
}

// start runs a client until the test ends or stop is called.
func (w *linkWorld) start(k *Client) (stop func(), ended chan error) {
	ctx, cancel := context.WithCancelCause(context.Background())
	ended = make(chan error, 1)
	var work sync.WaitGroup
	work.Go(func() { ended <- k.Run(ctx) })
	stop = func() { cancel(errLinkTest); work.Wait() }
	w.Cleanup(stop)
	return stop, ended
}

// states records what a client is told.
type states struct {
	mu  sync.Mutex
	all []string
	at  []time.Time
	up  chan *Conn
}

func newStates(k *Client) *states {
	s := &states{up: make(chan *Conn, 100)}
	k.OnState = func(c *Conn, err error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		text := "up"
		if err != nil {
			text = err.Error()
		} else {
			s.up <- c
		}
		s.all = append(s.all, text)
		s.at = append(s.at, time.Now())
	}
	return s
}

func (s *states) list() ([]string, []time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.all), slices.Clone(s.at)
}

package entrypoint

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/relay"
)

// TestSoakSetRoutes replaces the routes ten times a second while connections are
// opened, used and closed over real sockets: others come and go, some of those
// used are removed and come back under their connections, and all get new
// backends each time. No connection may be lost. It takes 2 s, and with
// RHIZOME_LONG=1 ten minutes.
func TestSoakSetRoutes(t *testing.T) {
	length := 2 * time.Second
	if os.Getenv("RHIZOME_LONG") == "1" {
		length = 10 * time.Minute
	}
	s := &soak{TB: t, router: &Router{HeadTimeout: -1}}
	for range 3 {
		s.backends = append(s.backends, s.listen(func(l net.Listener) { s.echo(l) }))
	}
	s.door = s.listen(func(l net.Listener) {
		if err := s.router.Serve(l, &Door{By: BySNI | ByHeader}); err != ErrRouterClosed {
			t.Errorf("Serve = %v", err)
		}
	})
	s.replace(0)
	// A removed route takes no new connections, so that these are opened before.
	var old []net.Conn
	for i := range 20 {
		old = append(old, s.open(fmt.Sprintf("other-%d", i)))
	}
	ctx, cancel := context.WithTimeout(t.Context(), length)
	defer cancel()
	begin := time.Now()
	var load sync.WaitGroup
	load.Go(func() {
		for n := 1; ctx.Err() == nil; n++ {
			s.replace(n)
			time.Sleep(time.Until(begin.Add(time.Duration(n) * 100 * time.Millisecond))) // a late one is made up for
		}
	})
	for i, c := range old {
		load.Go(func() { s.use(ctx, c, i) })
	}
	for i := range 20 {
		load.Go(func() { s.use(ctx, s.open("kept-"+fmt.Sprint(i%keptRoutes)), i) })
	}
	for range 8 {
		load.Go(func() {
			for ctx.Err() == nil && !t.Failed() {
				s.once(fmt.Sprintf("kept-%d", rand.N(keptRoutes)))
			}
		})
	}
	load.Wait()
	took := time.Since(begin)
	if err := s.router.Shutdown(t.Context()); err != nil {
		t.Errorf("Shutdown = %v", err)
	}
	s.closing.Wait()
	stats := s.router.Stats()
	var broken uint64
	for _, r := range stats.Routes {
		broken += r.ClientReset + r.BackendReset + r.Broken
	}
	if broken > 0 || len(stats.Refused) > 0 || stats.Conns+stats.Sniffing > 0 {
		t.Errorf("%d broken, %d left, refused %v", broken, stats.Conns+stats.Sniffing, stats.Refused)
	}
	if s.opened.Load() <= 40 || s.replaced < 3 {
		t.Errorf("that was no load: %d connections, %d replacements", s.opened.Load(), s.replaced)
	}
	t.Logf("%v: %d connections, %d MiB echoed, routes replaced %d times: %d broken, %d refused",
		took.Round(time.Second), s.opened.Load(), s.echoed.Load()>>20, s.replaced, broken, len(stats.Refused))
}

// keptRoutes is how many routes are in every set.
const keptRoutes = 4

// soak is a router on loopback with some backends.
type soak struct {
	testing.TB
	router   *Router
	door     string
	backends []string
	replaced int
	closing  sync.WaitGroup

	opened, echoed atomic.Int64
}

// listen serves a port of loopback until the end of the test.
func (s *soak) listen(serve func(net.Listener)) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() { l.Close() })
	go serve(l)
	return l.Addr().String()
}

// echo is a backend.
func (s *soak) echo(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		s.closing.Go(func() {
			defer c.Close()
			if _, err := io.Copy(c, c); err != nil {
				s.Errorf("a backend loses its connection: %v", err)
			}
		})
	}
}

// replace sets the n-th version of the routes: what is kept, with other backends
// than before, and about half of the others. The first one has them all, and one
// of ten is invalid.
func (s *soak) replace(n int) {
	var routes []*Route
	add := func(name string) {
		k := rand.N(len(s.backends))
		backends := append(s.backends[k:len(s.backends):len(s.backends)], s.backends[:k]...)
		routes = append(routes, &Route{
			Name: name, SNI: []string{name + ".example.com"}, HeaderValues: []string{name}, Handler: &Forward{Backends: backends[:1+rand.N(len(backends))]},
		})
	}
	for i := range keptRoutes {
		add(fmt.Sprintf("kept-%d", i))
	}
	for i := range 200 {
		if n == 0 || rand.N(2) == 0 {
			add(fmt.Sprintf("other-%d", i))
		}
	}
	invalid := n%10 == 9
	if invalid {
		routes[0].SNI = routes[1].SNI
	}
	s.replaced++
	if err := s.router.SetRoutes(routes); (err != nil) != invalid {
		s.Errorf("SetRoutes = %v", err)
	}
}

// open connects to a route.
func (s *soak) open(route string) net.Conn {
	c, err := net.Dial("tcp", s.door)
	if err != nil {
		s.Error(err)
		return nil
	}
	head := "CONNECT x:1 HTTP/1.1\r\nHost: x:1\r\nReversed-VPN: " + route + "\r\n\r\n"
	answer := make([]byte, len("HTTP/1.1 200 Connection established\r\n\r\n"))
	_, err = io.WriteString(c, head)
	if err == nil {
		_, err = io.ReadFull(c, answer)
	}
	if err != nil || !bytes.HasPrefix(answer, []byte("HTTP/1.1 200 ")) || !bytes.HasSuffix(answer, []byte("\r\n\r\n")) {
		s.Errorf("%s: %q, %v", route, answer, err)
		c.Close()
		return nil
	}
	s.opened.Add(1)
	return c
}

// use has what is sent come back until ctx ends, and then ends the connection.
func (s *soak) use(ctx context.Context, c net.Conn, seed int) {
	if c == nil {
		return
	}
	r := rand.New(rand.NewPCG(uint64(seed), 1))
	for ctx.Err() == nil {
		if err := s.ping(c, r); err != nil {
			s.Errorf("a long connection breaks: %v", err)
			c.Close()
			return
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Duration(r.IntN(20)) * time.Millisecond):
		}
	}
	if err := s.end(c); err != nil {
		s.Errorf("a long connection ends badly: %v", err)
	}
}

// once is a connection with a short life.
func (s *soak) once(route string) {
	c := s.open(route)
	if c == nil {
		return
	}
	err := s.ping(c, rand.New(rand.NewPCG(rand.Uint64(), 2)))
	if err == nil {
		err = s.end(c)
	}
	if err != nil {
		s.Errorf("a short connection breaks: %v", err)
		c.Close()
	}
}

// ping sends something and waits for its echo.
func (s *soak) ping(c net.Conn, r *rand.Rand) error {
	sent := make([]byte, 1+r.IntN(16<<10))
	for i := range sent {
		sent[i] = byte(r.Uint32())
	}
	if _, err := c.Write(sent); err != nil {
		return err
	}
	got := make([]byte, len(sent))
	if _, err := io.ReadFull(c, got); err != nil {
		return err
	}
	if !bytes.Equal(sent, got) {
		return errors.New("the echo is another one")
	}
	s.echoed.Add(int64(len(sent)))
	return nil
}

// end half-closes, and wants EOF and nothing else.
func (s *soak) end(c net.Conn) error {
	defer c.Close()
	if err := relay.CloseWrite(c); err != nil {
		return err
	}
	if n, err := io.Copy(io.Discard, c); n != 0 || err != nil {
		return fmt.Errorf("%d bytes and %v instead of EOF", n, err)
	}
	return nil
}

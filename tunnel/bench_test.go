package tunnel

import (
	"context"
	"fmt"
	"io"
	"net"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// heapAndStacks is what the process holds, after collecting.
func heapAndStacks() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapInuse + m.StackInuse
}

// rig is a server with agents that reach targets of the test, all in memory
// and without TLS, so that only the tunnel itself is measured.
type rig struct {
	server *Server
	net    *tunneltest.Network
	done   sync.WaitGroup
	agents []*Agent
}

func newRig(b *testing.B, limits Limits) *rig {
	b.Helper()
	r := &rig{server: &Server{ID: "server", Limits: limits}, net: &tunneltest.Network{}}
	l, err := r.net.Listen("tcp", "server:80")
	if err != nil {
		b.Fatal(err)
	}
	r.done.Go(func() {
		_ = r.server.ServeDoor(l, Door{Agents: FixedCluster("a"), Clients: FixedCluster("a")})
	})
	b.Cleanup(func() { r.close(b) })
	return r
}

func (r *rig) agent(id string, target func(net.Conn)) {
	a := &Agent{
		ID: id, Servers: []string{"http://server:80"}, MaxStreams: -1,
		Dial: r.net.Host(id).Dial,
		DialTarget: func(context.Context, string, string) (net.Conn, error) {
			near, far := tunneltest.Pipe()
			r.done.Go(func() { defer far.Close(); target(far) })
			return near, nil
		},
	}
	r.agents = append(r.agents, a)
	r.done.Go(func() { _ = a.Run(context.Background()) })
}

func (r *rig) wait(b *testing.B, agents int) {
	b.Helper()
	for range 6000 {
		if c := r.server.registry.get("a"); c != nil && len(c.list()) >= agents {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	b.Fatal("the agents do not come")
}

func (r *rig) dial(b *testing.B) net.Conn {
	b.Helper()
	c, err := r.server.Dialer("a")(context.Background(), "tcp", "10.0.0.7:80")
	if err != nil {
		b.Fatal(err)
	}
	return c
}

// close ends everything and verifies that nothing is left.
func (r *rig) close(b *testing.B) {
	b.Helper()
	var all sync.WaitGroup
	for _, a := range r.agents {
		all.Go(func() { a.Close() })
	}
	all.Wait()
	r.server.Close()
	for _, c := range r.net.Conns() {
		c.Cut()
	}
	r.done.Wait()
	for _, c := range r.server.Clusters() {
		if len(c.Agents) != 0 || c.Streams != 0 || c.Unread != 0 {
			b.Errorf("left after Close: %+v", c)
		}
	}
}

func echoConn(c net.Conn) { _, _ = io.Copy(c, c) }

func ping(c net.Conn) (time.Duration, error) {
	start := time.Now()
	if _, err := c.Write([]byte("ping")); err != nil {
		return 0, err
	}
	_, err := io.ReadFull(c, make([]byte, 4))
	return time.Since(start), err
}

// Bytes of memory per idle stream, for both ends of the session and the
// in-memory target together.
func BenchmarkIdleStreams(b *testing.B) {
	const streams = 10_000
	for b.Loop() {
		before := runtime.NumGoroutine()
		r := newRig(b, Limits{StreamsPerSession: -1, Streams: -1, DialsPerSecond: -1})
		r.agent("agent-1", func(c net.Conn) { _ = c.(*tunneltest.Conn).WaitRead() })
		r.wait(b, 1)
		empty := heapAndStacks()
		conns := make([]net.Conn, streams)
		var dials sync.WaitGroup
		for i := range 8 {
			dials.Go(func() {
				for j := i; j < streams; j += 8 {
					c, err := r.server.Dialer("a")(context.Background(), "tcp", "10.0.0.7:80")
					if err != nil {
						b.Error(err)
						return
					}
					conns[j] = c
				}
			})
		}
		dials.Wait()
		if b.Failed() {
			return
		}
		b.ReportMetric(float64(heapAndStacks()-empty)/streams, "bytes/stream")
		b.ReportMetric(float64(runtime.NumGoroutine()-before)/streams, "goroutines/stream")
		for _, c := range conns {
			if err := c.Close(); err != nil {
				b.Error(err)
			}
		}
		for i := 0; r.server.registry.get("a").list()[0].streams() > 0; i++ {
			if i > 1000 {
				b.Fatalf("%d streams are left", r.server.registry.get("a").list()[0].streams())
			}
			time.Sleep(10 * time.Millisecond)
		}
		r.close(b)
		settle(b, before)
	}
}

// Bytes of memory per connected agent, for both ends.
func BenchmarkIdleAgents(b *testing.B) {
	const agents = 1000
	for b.Loop() {
		before := runtime.NumGoroutine()
		empty := heapAndStacks()
		r := newRig(b, Limits{Agents: -1})
		for i := range agents {
			r.agent(fmt.Sprintf("agent-%d", i), echoConn)
		}
		r.wait(b, agents)
		b.ReportMetric(float64(heapAndStacks()-empty)/agents, "bytes/agent")
		b.ReportMetric(float64(runtime.NumGoroutine()-before)/agents, "goroutines/agent")
		r.close(b)
		settle(b, before)
	}
}

// The latency of one stream, alone and beside 100 streams of the same session
// whose readers have stalled with full windows.
func BenchmarkStalledReaders(b *testing.B) {
	const stalled = 100
	measure := func(b *testing.B, c net.Conn) float64 {
		const pings = 2000
		var sum time.Duration
		for range pings {
			d, err := ping(c)
			if err != nil {
				b.Fatal(err)
			}
			sum += d
		}
		return float64(sum.Microseconds()) / pings
	}
	for b.Loop() {
		before := runtime.NumGoroutine()
		r := newRig(b, Limits{})
		flooding := make(chan struct{}) // closed: new targets flood
		r.agent("agent-1", func(c net.Conn) {
			select {
			case <-flooding:
				_, _ = io.Copy(flood{c}, zeros{})
			default:
				echoConn(c)
			}
		})
		r.wait(b, 1)
		c := r.dial(b)
		measure(b, c) // warm
		b.ReportMetric(measure(b, c), "µs/ping-alone")
		close(flooding)
		conns := []net.Conn{c}
		for range stalled {
			conns = append(conns, r.dial(b))
		}
		for i := 0; r.server.Clusters()[0].Unread < stalled*streamWindow*9/10; i++ {
			if i > 1000 {
				b.Fatalf("only %d bytes are stalled", r.server.Clusters()[0].Unread)
			}
			time.Sleep(10 * time.Millisecond)
		}
		b.ReportMetric(measure(b, c), "µs/ping-beside-100-stalled")
		for _, c := range conns {
			c.Close()
		}
		r.close(b)
		settle(b, before)
	}
}

// A dial through the tunnel, with a ping and the close.
func BenchmarkDial(b *testing.B) {
	r := newRig(b, Limits{DialsPerSecond: -1, StreamsPerSession: -1})
	r.agent("agent-1", echoConn)
	r.wait(b, 1)
	for b.Loop() {
		c := r.dial(b)
		if _, err := ping(c); err != nil {
			b.Fatal(err)
		}
		c.Close()
	}
}

// One stream at full speed, out and back.
func BenchmarkBulk(b *testing.B) {
	r := newRig(b, Limits{})
	r.agent("agent-1", echoConn)
	r.wait(b, 1)
	c := r.dial(b)
	defer c.Close()
	p := make([]byte, 64<<10)
	b.SetBytes(int64(len(p)))
	var reader sync.WaitGroup
	n := int64(0)
	reader.Go(func() { n, _ = io.Copy(io.Discard, c) })
	sent := int64(0)
	for b.Loop() {
		if _, err := c.Write(p); err != nil {
			b.Fatal(err)
		}
		sent += int64(len(p))
	}
	if err := c.(*conn).CloseWrite(); err != nil {
		b.Fatal(err)
	}
	reader.Wait()
	if n != sent {
		b.Errorf("%d of %d bytes came back", n, sent)
	}
}

package packet

import (
	"crypto/tls"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/relay"
	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// loopback is a TCP connection to ourselves.
func loopback(b testing.TB) (client, server net.Conn) {
	b.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	client, err = net.Dial("tcp", l.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	server, err = l.Accept()
	if err != nil {
		b.Fatal(err)
	}
	for _, c := range []net.Conn{client, server} {
		relay.KeepAlive(c)
		shortQueue(c)
	}
	return client, server
}

// secured puts TLS 1.3 on a connection; with gather, our socket is below it.
func secured(b testing.TB, client, server net.Conn, gather bool) (net.Conn, net.Conn) {
	b.Helper()
	ca, err := tunneltest.NewCA("test")
	if err != nil {
		b.Fatal(err)
	}
	cert, err := ca.Issue(tunneltest.CertOptions{DNS: []string{"server"}})
	if err != nil {
		b.Fatal(err)
	}
	if gather {
		client, server = newSocket(client, time.Minute), newSocket(server, time.Minute)
	}
	c := tls.Client(client, &tls.Config{RootCAs: ca.Pool(), ServerName: "server", DynamicRecordSizingDisabled: true})
	s := tls.Server(server, &tls.Config{Certificates: []tls.Certificate{cert.TLS}, DynamicRecordSizingDisabled: true})
	done := make(chan error, 1)
	go func() { done <- s.Handshake() }()
	if err := c.Handshake(); err != nil {
		b.Fatal(err)
	}
	if err := <-done; err != nil {
		b.Fatal(err)
	}
	return c, s
}

// linkCarriers are what a link may go over.
func linkCarriers() []struct {
	name string
	make func(testing.TB) (net.Conn, net.Conn)
} {
	return []struct {
		name string
		make func(testing.TB) (net.Conn, net.Conn)
	}{
		{"pipe", func(testing.TB) (net.Conn, net.Conn) { return tunneltest.Pipe() }},
		{"tcp", loopback},
		{"tls", func(b testing.TB) (net.Conn, net.Conn) {
			c, s := loopback(b)
			return secured(b, c, s, true)
		}},
		{"tls-ungathered", func(b testing.TB) (net.Conn, net.Conn) {
			c, s := loopback(b)
			return secured(b, c, s, false)
		}},
	}
}

// BenchmarkLink sends batches one way: of whole packets, and of large ones as
// segmentation offload makes them.
func BenchmarkLink(b *testing.B) {
	for _, carrier := range linkCarriers() {
		for _, shape := range []struct {
			name    string
			n, size int
		}{{"1x1400", 1, 1400}, {"32x1400", 32, 1400}, {"4x64000", 4, 62000}} {
			b.Run(carrier.name+"/"+shape.name, func(b *testing.B) {
				ca, cb := carrier.make(b)
				h := Hello{Mode: TUN, MTU: 65535, Offload: OffloadAll}
				x, y := linkOver(b, ca, cb, h, h, nil, nil)
				linkRun(b, x, y)
				linkDrain(x, nil)
				var got atomic.Int64
				go func() {
					var in Batch
					for y.ReadBatch(&in) == nil {
						got.Add(int64(in.Len()))
					}
				}()
				batch := linkBatch(shape.n, shape.size, 0)
				b.SetBytes(int64(batch.Size()))
				b.ReportAllocs()
				cpu := cpuTime()
				for b.Loop() {
					if err := x.WriteBatch(batch); err != nil {
						b.Fatal(err)
					}
				}
				for got.Load() < int64(b.N*shape.n) {
					time.Sleep(10 * time.Microsecond)
				}
				b.ReportMetric(float64(b.N*shape.n)/b.Elapsed().Seconds(), "packets/s")
				b.ReportMetric(float64(cpuTime()-cpu)/float64(b.N*batch.Size()), "cpu-ns/byte")
			})
		}
	}
}

// BenchmarkLinkPing is the time of a packet there and back.
func BenchmarkLinkPing(b *testing.B) {
	for _, carrier := range linkCarriers() {
		b.Run(carrier.name, func(b *testing.B) {
			ca, cb := carrier.make(b)
			x, y := linkOver(b, ca, cb, tunHello(), tunHello(), nil, nil)
			linkRun(b, x, y)
			go func() {
				var in Batch
				for y.ReadBatch(&in) == nil && y.WriteBatch(&in) == nil {
				}
			}()
			batch := linkBatch(1, 84, 0)
			var in Batch
			b.ReportAllocs()
			for b.Loop() {
				if err := x.WriteBatch(batch); err != nil {
					b.Fatal(err)
				}
				if err := x.ReadBatch(&in); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// A batch costs no memory on either side. (crypto/tls allocates a few bytes for each
// record that it reads.)
func TestBatchAllocations(t *testing.T) {
	quiet := &ConnOptions{Ping: -1}
	ca, cb := loopback(t)
	x, y := linkOver(t, ca, cb, tunHello(), tunHello(), quiet, quiet)
	batch := linkBatch(20, 1400, 0)
	var in Batch
	turn := func() {
		if err := x.WriteBatch(batch); err != nil {
			t.Fatal(err)
		}
		for n := 0; n < 20; n += in.Len() {
			if err := y.ReadBatch(&in); err != nil {
				t.Fatal(err)
			}
		}
	}
	for range 100 {
		turn()
	}
	if n := testing.AllocsPerRun(200, turn); n != 0 && !raceEnabled() {
		t.Errorf("%v allocations", n)
	}
}

package relay

import (
	"io"
	"net"
	"runtime"
	"testing"
)

// bulk moves b.N times 1 MiB from pa to pb.
func bulk(b *testing.B, pa, pb net.Conn) {
	const size = 1 << 20
	b.SetBytes(size)
	b.ReportAllocs()
	buf := make([]byte, size)
	b.ResetTimer()
	sent := make(chan error, 1)
	go func() {
		for range b.N {
			if _, err := pa.Write(buf); err != nil {
				sent <- err
				return
			}
		}
		sent <- CloseWrite(pa)
	}()
	in := make([]byte, 256<<10)
	n := int64(0)
	for {
		m, err := pb.Read(in)
		n += int64(m)
		if err == io.EOF {
			break
		}
		if err != nil {
			b.Fatal(err)
		}
	}
	if err := <-sent; err != nil || n != int64(b.N)*size {
		b.Fatal(n, err)
	}
}

// BenchmarkBulk compares the ways through a relay with no relay at all: read the
// ratios of one run.
func BenchmarkBulk(b *testing.B) {
	get := map[string]kind{}
	for _, k := range kinds() {
		get[k.name] = k
	}
	b.Run("direct", func(b *testing.B) {
		pa, pb := tcpPair(b)
		bulk(b, pa, pb)
	})
	b.Run("naive", func(b *testing.B) { // io.Copy, which splices too
		pa, la := tcpPair(b)
		pb, lb := tcpPair(b)
		done := naive(la, lb)
		bulk(b, pa, pb)
		_ = CloseWrite(pb)
		<-done
		<-done
	})
	for _, c := range []struct {
		name, a, b string
		hook       func(*relay)
	}{
		{"tcp-tcp-splice", "tcp", "tcp", nil},
		{"tcp-tcp-copy", "tcp", "tcp", func(r *relay) { r.ab.noSplice = true }},
		{"tcp-tcp-blind", "tcp", "tcp", func(r *relay) { r.a.raw = nil }},
		{"unix-tcp-splice", "unix", "tcp", nil},
		{"tcp-unix-splice", "tcp", "unix", nil},
		{"tcp-tls", "tcp", "tlsServer", nil},
		{"tls-tcp", "tlsServer", "tcp", nil},
		{"memory-memory", "memory", "memory", nil},
	} {
		b.Run(c.name, func(b *testing.B) {
			pa, la := get[c.a].pair(b)
			pb, lb := get[c.b].pair(b)
			r := start(b.Context(), b, la, lb, 0, c.hook)
			bulk(b, pa, pb)
			b.StopTimer()
			_ = CloseWrite(pb)
			r.wantNil()
		})
	}
}

// BenchmarkPing bounces one byte: the cost of a relay to an interactive stream.
func BenchmarkPing(b *testing.B) {
	ping := func(b *testing.B, pa, pb net.Conn) {
		echo := make(chan struct{})
		go func() {
			defer close(echo)
			buf := make([]byte, 64)
			for {
				n, err := pb.Read(buf)
				if err != nil {
					return
				}
				_, _ = pb.Write(buf[:n])
			}
		}()
		buf := make([]byte, 1)
		b.ReportAllocs()
		for b.Loop() {
			if _, err := pa.Write(buf); err != nil {
				b.Fatal(err)
			}
			if _, err := pa.Read(buf); err != nil {
				b.Fatal(err)
			}
		}
		_ = CloseWrite(pa)
		<-echo
		_ = CloseWrite(pb)
	}
	b.Run("direct", func(b *testing.B) {
		pa, pb := tcpPair(b)
		ping(b, pa, pb)
	})
	b.Run("relay", func(b *testing.B) {
		pa, la := tcpPair(b)
		pb, lb := tcpPair(b)
		r := start(b.Context(), b, la, lb, 0, nil)
		ping(b, pa, pb)
		r.wantNil()
	})
	b.Run("naive", func(b *testing.B) {
		pa, la := tcpPair(b)
		pb, lb := tcpPair(b)
		done := naive(la, lb)
		ping(b, pa, pb)
		<-done
		<-done
	})
	b.Run("relay-idle-timeout", func(b *testing.B) {
		pa, la := tcpPair(b)
		pb, lb := tcpPair(b)
		r := start(b.Context(), b, la, lb, patience, nil)
		ping(b, pa, pb)
		r.wantNil()
	})
}

// naive is what people write: io.Copy twice.
func naive(a, b net.Conn) chan struct{} {
	done := make(chan struct{}, 2)
	copyOne := func(dst, src net.Conn) {
		_, _ = io.Copy(dst, src)
		_ = CloseWrite(dst)
		done <- struct{}{}
	}
	go copyOne(a, b)
	go copyOne(b, a)
	return done
}

// BenchmarkIdle reports what a relay costs that has carried a little and waits:
// memory of this process, without the sockets in the kernel, and descriptors
// beyond the two sockets.
func BenchmarkIdle(b *testing.B) {
	const relays = 500
	for _, k := range kinds() {
		b.Run(k.name, func(b *testing.B) {
			for range b.N {
				type open struct{ pa, pb, la, lb net.Conn }
				var opens []open
				for range relays {
					var o open
					o.pa, o.la = k.pair(b)
					o.pb, o.lb = k.pair(b)
					opens = append(opens, o)
				}
				before := inUse()
				var rs []*running
				for _, o := range opens {
					rs = append(rs, start(b.Context(), b, o.la, o.lb, patience, nil))
				}
				// TLS keeps its own buffers from the handshake on: it is not ours.
				for _, o := range opens {
					go func() { _, _ = o.pa.Write([]byte("x")) }()
					mustRead(b, o.pb, "x")
				}
				b.ReportMetric(float64(inUse()-before)/relays, "B/relay")
				for i, o := range opens {
					_ = CloseWrite(o.pa)
					_ = CloseWrite(o.pb)
					_ = rs[i].wait()
				}
			}
		})
	}
}

func inUse() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapInuse + m.StackInuse)
}

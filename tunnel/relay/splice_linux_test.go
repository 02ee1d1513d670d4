package relay

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// log notes the events of both directions.
type log struct {
	mu     sync.Mutex
	events []logged
}

type logged struct {
	from string
	what event
	n    int64
}

func (l *log) trace(from string, what event, n int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.events = append(l.events, logged{from, what, n})
}

func (l *log) hook(r *relay) { r.trace = l.trace }

// find returns the n of all events of that kind.
func (l *log) find(from string, what event) (ns []int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range l.events {
		if e.from == from && e.what == what {
			ns = append(ns, e.n)
		}
	}
	return ns
}

// parked waits until the direction waits for its socket after what comes now.
func (l *log) parked(t *testing.T, from string, do func()) {
	t.Helper()
	n := len(l.find(from, eventPark))
	do()
	eventually(t, func() bool { return len(l.find(from, eventPark)) > n })
}

// spliceKinds are the makes that can be spliced.
func spliceKinds() []kind {
	var ks []kind
	for _, k := range kinds() {
		switch k.name {
		case "tcp", "unix", "prefixed":
			ks = append(ks, k)
		}
	}
	return ks
}

func eachSplice(t *testing.T, f func(t *testing.T, pa, pb net.Conn, a, b net.Conn)) {
	for _, ka := range spliceKinds() {
		for _, kb := range spliceKinds() {
			t.Run(ka.name+"-"+kb.name, func(t *testing.T) {
				pa, a := ka.pair(t)
				pb, b := kb.pair(t)
				limit(pa, pb)
				f(t, pa, pb, a, b)
			})
		}
	}
}

// push moves bytes of pattern from one peer to the other, and returns when the
// relay waits again.
func (l *log) push(t *testing.T, from, to net.Conn, off, n int64) {
	t.Helper()
	l.parked(t, "a", func() {
		sent := make(chan error, 1)
		go func() { sent <- sendPattern(from, off, n) }()
		if err := errors.Join(checkPattern(to, off, n), <-sent); err != nil {
			t.Fatal(err)
		}
	})
}

func TestSpliceThreshold(t *testing.T) {
	eachSplice(t, func(t *testing.T, pa, pb, a, b net.Conn) {
		var l log
		r := start(t.Context(), t, a, b, 0, l.hook)
		l.push(t, pa, pb, 0, spliceAfter-1)
		if n := l.find("a", eventSplice); len(n) > 0 {
			t.Fatalf("splices after %d bytes", n)
		}
		l.push(t, pa, pb, spliceAfter-1, 1)
		if n := l.find("a", eventSplice); len(n) != 1 || n[0] != spliceAfter {
			t.Fatalf("splices after %d bytes, want %d", n, spliceAfter)
		}
		l.push(t, pa, pb, spliceAfter, 3<<20)
		if n := l.find("a", eventCopy); len(n) > 0 {
			t.Error("does not splice any more")
		}
		// The other direction counts for itself.
		mustWrite(t, pb, "answer")
		mustRead(t, pa, "answer")
		if n := l.find("b", eventSplice); len(n) > 0 {
			t.Error("b splices too")
		}
		mustCloseWrite(t, pa)
		mustEOF(t, pb)
		mustWrite(t, pb, "late")
		mustRead(t, pa, "late")
		mustCloseWrite(t, pb)
		mustEOF(t, pa)
		r.wantNil()
		r.wantBytes(spliceAfter+3<<20, 10)
	})
}

func TestResetWhileSplicing(t *testing.T) {
	for _, who := range []string{"source", "target", "context"} {
		t.Run(who, func(t *testing.T) {
			eachSplice(t, func(t *testing.T, pa, pb, a, b net.Conn) {
				var l log
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				r := start(ctx, t, a, b, 0, l.hook)
				l.push(t, pa, pb, 0, spliceAfter)
				switch who {
				case "source":
					resetPeer(t, r, pa, pb, 0)
					r.wantError(OpRead, "a", syscall.ECONNRESET)
				case "target":
					if err := Reset(pb); err != nil {
						t.Fatal(err)
					}
					// Keep sending, as a bulk source does.
					_, _ = io.Copy(struct{ io.Writer }{pa}, &pattern{})
					if _, ok := pb.(*net.UnixConn); !ok {
						r.wantError("", "b", nil)
						break
					}
					r.wait() // a Unix socket says EOF first
				case "context":
					cancel()
					r.wantError(OpContext, "", context.Canceled)
				}
				other := map[string]net.Conn{"source": pb, "target": pa, "context": pa}[who]
				if _, ok := other.(*net.TCPConn); ok && who != "target" {
					if _, err := io.Copy(io.Discard, other); !isReset(err) {
						t.Errorf("other leg: %v, want ECONNRESET", err)
					}
				}
			})
		})
	}
}

// fds returns how many descriptors are open once the garbage collector had its
// chance to close pooled pipes.
func fds(t testing.TB) int {
	t.Helper()
	d, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skip("needs /proc/self/fd: ", err)
	}
	return len(d)
}

// fdsCome waits until so many descriptors are open.
func fdsCome(t *testing.T, want int) {
	t.Helper()
	n := 0
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(time.Millisecond) {
		runtime.GC()
		if n = fds(t); n <= want {
			return
		}
	}
	t.Fatalf("%d descriptors are open, want %d", n, want)
}

// TestIdleSpliceHoldsNoPipe has many relays in the middle of bulk transfers that
// all pause, and counts.
func TestIdleSpliceHoldsNoPipe(t *testing.T) {
	fdsCome(t, fds(t)) // settle
	base := fds(t)
	const relays = 20
	func() {
		var ls [relays]log
		var rs [relays]*running
		var ends [relays][2]net.Conn
		for i := range rs {
			pa, a := tcpPair(t)
			pb, b := tcpPair(t)
			limit(pa, pb)
			ends[i] = [2]net.Conn{pa, pb}
			rs[i] = start(t.Context(), t, a, b, 0, ls[i].hook)
			ls[i].push(t, pa, pb, 0, spliceAfter+1<<20)
			if len(ls[i].find("a", eventSplice)) == 0 {
				t.Fatal("does not splice")
			}
		}
		fdsCome(t, base+4*relays)
		for i := range rs {
			ls[i].push(t, ends[i][0], ends[i][1], spliceAfter+1<<20, 1<<20)
			mustCloseWrite(t, ends[i][0])
			mustCloseWrite(t, ends[i][1])
			rs[i].wantNil()
			ends[i][0].Close()
			ends[i][1].Close()
		}
	}()
	fdsCome(t, base)
}

// TestNoLeakAfterReset leaves bytes in the pipe: it must be closed, not reused.
func TestNoLeakAfterReset(t *testing.T) {
	fdsCome(t, fds(t))
	base := fds(t)
	for range 5 {
		pa, a := tcpPair(t)
		pb, b := tcpPair(t)
		limit(pa, pb)
		var l log
		ctx, cancel := context.WithCancel(t.Context())
		r := start(ctx, t, a, b, 0, l.hook)
		l.push(t, pa, pb, 0, spliceAfter)
		_ = pa.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
		if err := sendPattern(pa, 0, 1<<30); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal(err)
		}
		cancel()
		r.wantError(OpContext, "", context.Canceled)
		pa.Close()
		pb.Close()
	}
	fdsCome(t, base)
}

// TestSpliceStopsForSmallRounds sends an interactive stream through a direction
// that was a bulk stream before.
func TestSpliceStopsForSmallRounds(t *testing.T) {
	pa, a := tcpPair(t)
	pb, b := tcpPair(t)
	limit(pa, pb)
	var l log
	r := start(t.Context(), t, a, b, 0, l.hook)
	off := int64(0)
	push := func(n int64) {
		l.push(t, pa, pb, off, n)
		off += n
	}
	push(spliceAfter)
	for range smallRounds - 1 {
		push(100)
	}
	if n := l.find("a", eventCopy); len(n) != 0 {
		t.Fatal("stopped too early")
	}
	push(100)
	if n := l.find("a", eventCopy); len(n) != 1 {
		t.Fatalf("stopped %d times, want once", len(n))
	}
	push(spliceAfter - 1)
	if n := l.find("a", eventSplice); len(n) != 1 {
		t.Fatal("spliced again too early")
	}
	push(1)
	if n := l.find("a", eventSplice); len(n) != 2 {
		t.Fatal("did not splice again")
	}
	mustCloseWrite(t, pa)
	mustCloseWrite(t, pb)
	r.wantNil()
	r.wantBytes(off, 0)
}

// TestSpliceWithoutPipe copies on when there are no descriptors left.
func TestSpliceWithoutPipe(t *testing.T) {
	pa, a := tcpPair(t)
	pb, b := tcpPair(t)
	limit(pa, pb)
	fdsCome(t, fds(t))
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	// Pipes that other tests left in the pool go first.
	for getPipe() != nil {
		if fds(t) > 200 {
			break
		}
	}
	low := old
	low.Cur = 3
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &low); err != nil {
		t.Skip("cannot lower RLIMIT_NOFILE: ", err)
	}
	restore := sync.OnceFunc(func() { _ = unix.Setrlimit(unix.RLIMIT_NOFILE, &old) })
	defer restore()
	var l log
	r := start(t.Context(), t, a, b, 0, l.hook)
	l.push(t, pa, pb, 0, 4<<20)
	if n := l.find("a", eventCopy); len(n) == 0 {
		t.Error("spliced without a pipe")
	}
	mustCloseWrite(t, pa)
	mustCloseWrite(t, pb)
	r.wantNil()
	r.wantBytes(4<<20, 0)
}

// TestCounterLive looks at the counter while the direction splices: it must not
// be above what the peers have done, never go down, and come to the truth.
func TestCounterLive(t *testing.T) {
	eachSplice(t, func(t *testing.T, pa, pb, a, b net.Conn) {
		r := start(t.Context(), t, a, b, 0, nil)
		const total = 4 << 20
		sent := make(chan error, 1)
		go func() { sent <- sendPattern(pa, 0, total) }()
		var got, last int64
		for got < total {
			n := min(int64(25_000), total-got)
			if err := checkPattern(pb, got, n); err != nil {
				t.Fatal(err)
			}
			got += n
			now, _ := r.Bytes()
			if now < last || now > total {
				t.Fatalf("Bytes = %d after %d, with %d received and %d sent", now, last, got, total)
			}
			last = now
		}
		if err := <-sent; err != nil {
			t.Fatal(err)
		}
		eventually(t, func() bool { now, _ := r.Bytes(); return now == total })
		mustCloseWrite(t, pa)
		mustCloseWrite(t, pb)
		r.wantNil()
		r.wantBytes(total, 0)
	})
}

// TestStalledDirection stops reading one way, at full buffers and in the middle
// of splicing, while the other way goes on.
func TestStalledDirection(t *testing.T) {
	eachSplice(t, func(t *testing.T, pa, pb, a, b net.Conn) {
		var l log
		r := start(t.Context(), t, a, b, 0, l.hook)
		l.push(t, pa, pb, 0, spliceAfter)
		_ = pa.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
		n, err := io.Copy(struct{ io.Writer }{pa}, &pattern{spliceAfter})
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal(err)
		}
		_ = pa.SetWriteDeadline(time.Time{})
		const back = 1 << 20
		sent := make(chan error, 1)
		go func() { sent <- sendPattern(pb, 0, back) }()
		if err := errors.Join(checkPattern(pa, 0, back), <-sent); err != nil {
			t.Fatal(err)
		}
		// Nothing was lost of what had to wait.
		if err := checkPattern(pb, spliceAfter, n); err != nil {
			t.Fatal(err)
		}
		mustCloseWrite(t, pa)
		mustEOF(t, pb)
		mustCloseWrite(t, pb)
		r.wantNil()
		r.wantBytes(spliceAfter+n, back)
	})
}

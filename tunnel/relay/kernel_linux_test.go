package relay

import (
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"
)

// fill writes to c until its send buffer and the peer's receive buffer are full,
// and returns how much went in.
func fill(t *testing.T, c net.Conn) int64 {
	t.Helper()
	_ = c.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
	n, err := io.Copy(struct{ io.Writer }{c}, &pattern{})
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal(err)
	}
	_ = c.SetWriteDeadline(time.Time{})
	return n
}

// TestSlowReaderIsNotIdle has a reader who works through a full send buffer, so
// that only the kernel sees progress. The clock is set back, nobody has to wait.
func TestSlowReaderIsNotIdle(t *testing.T) {
	_, a := tcpPair(t)
	pb, b := tcpPair(t)
	limit(pb)
	r := newRelay(a, NewPrefixed(b, nil), &Options{IdleTimeout: time.Hour})
	_ = fill(t, b)
	r.idle.start(r)
	defer r.idle.stop()
	now := func(late time.Duration) { r.idle.begin = time.Now().Add(-late) }

	// The peer reads on: that is progress of right now.
	if _, err := io.CopyN(io.Discard, pb, 1<<20); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() bool { n, _, _ := r.b.acknowledged(); return n != r.idle.b.bytes })
	now(90 * time.Minute)
	if rest := r.idle.check(); rest < 59*time.Minute || rest > time.Hour {
		t.Errorf("looks again after %v, want about an hour", rest)
	}
	if r.err != nil {
		t.Fatal(r.err)
	}
	// And then it stops. What was still on its way counts once more at most.
	eventually(t, func() bool { return r.idle.check() == 0 })
	if !errors.Is(r.result(), ErrIdle) {
		t.Errorf("err = %v, want ErrIdle", r.result())
	}
}

// TestWaitWritable is what keeps close_notify from running into a full buffer.
func TestWaitWritable(t *testing.T) {
	p, c := tcpPair(t)
	limit(p)
	n := int64(0)
	var done chan struct{}
	for blocked, tries := false, 0; !blocked; tries++ {
		if tries == 20 {
			t.Fatal("a full socket is called writable")
		}
		n += fill(t, c) // again: what is on its way makes room after a while
		done = make(chan struct{})
		go func() { waitWritable(c); close(done) }()
		select {
		case <-done:
		case <-time.After(20 * time.Millisecond):
			blocked = true
		}
	}
	if _, err := io.CopyN(io.Discard, p, n); err != nil {
		t.Fatal(err)
	}
	<-done
	m, _ := memoryPair(t)
	waitWritable(m) // nothing to wait for
}

// TestSlowReaderOverTLS stops reading for longer than crypto/tls grants to
// close_notify, with the send buffer full to the last byte.
func TestSlowReaderOverTLS(t *testing.T) {
	if os.Getenv("RHIZOME_LONG") == "" {
		t.Skip("takes 6 s: set RHIZOME_LONG=1")
	}
	a, b := tcpPair(t)
	client, server := tlsOver(t, a, b)
	limit(client)
	shaken := make(chan error, 1)
	go func() { shaken <- client.Handshake() }()
	if err := errors.Join(server.Handshake(), <-shaken); err != nil {
		t.Fatal(err)
	}
	// Not TLS any more, but nobody reads it as such.
	n := fill(t, b)
	closed := make(chan error, 1)
	go func() { closed <- CloseWrite(server) }()
	time.Sleep(6 * time.Second)
	select {
	case err := <-closed:
		t.Fatalf("CloseWrite = %v before there was room", err)
	default:
	}
	if _, err := io.CopyN(io.Discard, a, n); err != nil {
		t.Fatal(err)
	}
	if err := <-closed; err != nil {
		t.Error(err)
	}
}

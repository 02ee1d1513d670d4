package tunnel

import (
	"context"
	"io"
	"math/rand/v2"
	"net"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// hostileSeeds are what a peer could say after the upgrade: bytes of the
// carrier, from the first yamux frame on.
func hostileSeeds(f *testing.F, kind uint16) {
	message := func(t messageType, payload any) []byte {
		b, err := encodeMessage(t, payload)
		if err != nil {
			f.Fatal(err)
		}
		return b
	}
	control := func(flags uint16, parts ...[]byte) []byte {
		body := slices.Concat(parts...)
		head := yamuxFrame(yamuxData, flags, 1, uint32(len(body)))[:yamuxHeader]
		return append(head, body...)
	}
	hello := message(typeHello, helloMessage{MinVersion: 1, MaxVersion: 1, Features: features(), ID: "hostile", Nonce: "0123456789"})
	f.Add(control(kind, hello))
	f.Add(control(kind, hello, message(typePing, pingMessage{Seq: 1}), message(typePong, pingMessage{Seq: 1}), message(typeDrain, drainMessage{Reason: drainReplaced})))
	f.Add(control(kind, hello, message(typeReset, resetMessage{Stream: 1, Code: resetAbort}), message(typePeers, peersMessage{Servers: []string{"a", "b"}})))
	f.Add(control(kind, hello, message(typeReset, resetMessage{Stream: 3, Code: resetAck}), message(typeBye, byeMessage{Code: byeDone})))
	f.Add(slices.Concat(control(kind, hello), yamuxFrame(yamuxWindow, yamuxSYN, 3, 0), yamuxFrame(yamuxData, yamuxFIN, 3, 30), yamuxFrame(yamuxWindow, yamuxRST, 1, 0)))
	f.Add(slices.Concat(control(kind, hello), yamuxFrame(yamuxData, yamuxSYN, 3, 0), append(yamuxFrame(yamuxData, 0, 3, 44)[:yamuxHeader], "CONNECT 10.0.0.7:80 HTTP/1.1\r\nHost: xyz\r\n\r\n"...)))
	f.Add(yamuxFrame(yamuxPing, yamuxSYN, 0, 7))
	f.Add(yamuxFrame(yamuxGoAway, 0, 0, 0))
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"))
	f.Add([]byte{})
}

// sayAndLeave writes data in pieces to the carrier, reads away what comes, and
// closes it.
func sayAndLeave(c net.Conn, data []byte) {
	drained := make(chan struct{})
	go func() { defer close(drained); _, _ = io.Copy(io.Discard, c) }()
	r := rand.New(rand.NewPCG(uint64(len(data)), 1))
	for len(data) > 0 {
		n := 1 + r.IntN(len(data))
		if _, err := c.Write(data[:n]); err != nil {
			break
		}
		data = data[n:]
	}
	time.Sleep(time.Millisecond)
	c.Close()
	<-drained
}

// within fails the test when f hangs.
func within(t *testing.T, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() { defer close(done); f() }()
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		buf := make([]byte, 1<<20)
		t.Fatalf("%s hangs\n%s", what, buf[:runtime.Stack(buf, true)])
	}
}

// Whatever an agent says, its session ends with its connection and nothing is
// left of it.
func FuzzServerSession(f *testing.F) {
	hostileSeeds(f, 0)
	f.Fuzz(func(t *testing.T, data []byte) {
		before := runtime.NumGoroutine()
		s := &Server{ID: "server"}
		near, far := tunneltest.Pipe()
		within(t, "the session of a hostile agent", func() {
			go sayAndLeave(far, data)
			ctx, err := s.begin()
			if err != nil {
				t.Error(err)
				return
			}
			defer s.work.Done()
			id := Identity{Cluster: "a", Name: "x", Check: func() error { return nil }}
			_ = s.attach(ctx, near, id, s.logger(), func() {})
		})
		for _, c := range s.Clusters() {
			if len(c.Agents) != 0 || c.Unread != 0 {
				t.Errorf("left: %+v", c)
			}
		}
		within(t, "Close", func() { s.Close() })
		settle(t, before)
	})
}

// The same for an agent and its server.
func FuzzAgentSession(f *testing.F) {
	hostileSeeds(f, yamuxSYN)
	f.Fuzz(func(t *testing.T, data []byte) {
		before := runtime.NumGoroutine()
		a := &Agent{ID: "agent", Allow: func(Target) error { return io.EOF }, DialTarget: func(context.Context, string, string) (net.Conn, error) {
			t.Error("a target was dialled")
			return nil, io.EOF
		}}
		near, far := tunneltest.Pipe()
		within(t, "the session of a hostile server", func() {
			go sayAndLeave(far, data)
			s, err := a.newSession(context.Background(), near, func(*helloMessage) error { return nil })
			if err == nil {
				_ = s.serve(context.Background())
			}
		})
		if n := len(a.Sessions()); n != 0 {
			t.Errorf("%d sessions are left", n)
		}
		settle(t, before)
	})
}

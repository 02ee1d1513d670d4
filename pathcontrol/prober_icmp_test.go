package pathcontrol

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// fakeEcho is a socket in memory: what is written can be seen, and what is to be
// read is put.
type fakeEcho struct {
	ident   int
	written chan []byte
	in      chan []byte // nil: an ICMP error
	closed  chan struct{}

	mu       sync.Mutex
	deadline time.Time
	changed  chan struct{}
	errors   []failure
	refuse   []error // of the next writes
}

func newFakeEcho() *fakeEcho {
	return &fakeEcho{
		ident: 77, written: make(chan []byte, 100), in: make(chan []byte, 100),
		closed: make(chan struct{}), changed: make(chan struct{}),
	}
}

func (f *fakeEcho) write(b []byte) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.refuse) > 0 {
		err := f.refuse[0]
		f.refuse = f.refuse[1:]
		return err
	}
	f.written <- b
	return nil
}

func (f *fakeEcho) read(b []byte) (int, error) {
	for {
		f.mu.Lock()
		deadline, changed := f.deadline, f.changed
		f.mu.Unlock()
		var late <-chan time.Time
		if !deadline.IsZero() {
			late = time.After(time.Until(deadline))
		}
		select {
		case m := <-f.in:
			if m == nil {
				return 0, syscall.EHOSTUNREACH
			}
			return copy(b, m), nil
		case <-late:
			return 0, os.ErrDeadlineExceeded
		case <-changed:
		case <-f.closed:
			return 0, net.ErrClosed
		}
	}
}

func (f *fakeEcho) setReadDeadline(t time.Time) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.deadline = t
	close(f.changed)
	f.changed = make(chan struct{})
	return nil
}

func (f *fakeEcho) failures() []failure {
	f.mu.Lock()
	defer f.mu.Unlock()
	list := f.errors
	f.errors = nil
	return list
}

func (f *fakeEcho) id() int      { return f.ident }
func (f *fakeEcho) close() error { close(f.closed); return nil }

// fail has an ICMP error come back.
func (f *fakeEcho) fail(quoted []byte, err *UnreachableError) {
	f.mu.Lock()
	f.errors = append(f.errors, failure{quoted, err})
	f.mu.Unlock()
	f.in <- nil
}

// answer changes what was written into an answer, and into what change makes of
// it.
func answer(t *testing.T, request []byte, change func(m *icmp.Message, e *icmp.Echo)) []byte {
	t.Helper()
	proto := 1
	if request[0] == 128 {
		proto = 58
	}
	m, err := icmp.ParseMessage(proto, request)
	if err != nil {
		t.Fatal(err)
	}
	e := m.Body.(*icmp.Echo)
	m.Type = ipv4.ICMPTypeEchoReply
	if proto == 58 {
		m.Type = ipv6.ICMPTypeEchoReply
	}
	if change != nil {
		change(m, e)
	}
	b, err := m.Marshal(nil)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// asked is a probe under way.
type asked struct {
	request []byte
	cancel  context.CancelFunc
	err     chan error
}

func ask(t *testing.T, e *echoer) *asked {
	t.Helper()
	ctx, cancel := aWhile()
	t.Cleanup(cancel)
	a := &asked{cancel: cancel, err: make(chan error, 1)}
	go func() {
		_, err := e.probe(ctx)
		a.err <- err
	}()
	a.request = <-e.conn.(*fakeEcho).written
	return a
}

// Nothing but the answer to a request is one.
func TestICMPAnswers(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		f := newFakeEcho()
		e := newEchoer(f, v6, 56)
		a := ask(t, e)
		for name, change := range map[string]func(*icmp.Message, *icmp.Echo){
			"identifier": func(_ *icmp.Message, e *icmp.Echo) { e.ID++ },
			"number":     func(_ *icmp.Message, e *icmp.Echo) { e.Seq++ },
			"payload":    func(_ *icmp.Message, e *icmp.Echo) { e.Data[55] ^= 1 },
			"shorter":    func(_ *icmp.Message, e *icmp.Echo) { e.Data = e.Data[:55] },
			"longer":     func(_ *icmp.Message, e *icmp.Echo) { e.Data = append(e.Data, 0) },
			"code":       func(m *icmp.Message, _ *icmp.Echo) { m.Code = 1 },
			"type":       func(m *icmp.Message, _ *icmp.Echo) { m.Type = ipv4.ICMPTypeTimestampReply },
		} {
			f.in <- answer(t, a.request, change)
			select {
			case err := <-a.err:
				t.Errorf("with another %s: %v", name, err)
			default:
			}
		}
		f.in <- a.request // its own request, as a raw socket may see
		f.in <- nil       // an error about nothing
		f.in <- []byte{}
		f.fail(nil, &UnreachableError{Err: syscall.EHOSTUNREACH})
		f.fail(append([]byte{a.request[0], 0, 0, 0, 0, 77, 0, 0}, "some"...), &UnreachableError{Err: syscall.EHOSTUNREACH})
		f.fail(append(a.request[:8:8], "guessed"...), &UnreachableError{Err: syscall.EHOSTUNREACH})
		f.in <- answer(t, a.request, nil)
		if err := <-a.err; err != nil {
			t.Error(err)
		}
		f.in <- answer(t, a.request, nil) // once more: nobody waits

		b := ask(t, e)
		f.fail(b.request[:8], &UnreachableError{Err: syscall.ENETUNREACH})
		if err := <-b.err; !errors.Is(err, syscall.ENETUNREACH) {
			t.Error(err)
		}
		e.conn.close()
	}
}

// The one that reads goes away, and the next takes over.
func TestICMPReaderGoes(t *testing.T) {
	f := newFakeEcho()
	e := newEchoer(f, false, 16)
	all := []*asked{ask(t, e), ask(t, e), ask(t, e)}
	f.in <- answer(t, all[0].request, nil)
	if err := <-all[0].err; err != nil {
		t.Error(err)
	}
	all[1].cancel()
	if err := <-all[1].err; err != context.Canceled {
		t.Error(err)
	}
	f.setReadDeadline(time.Unix(1, 0)) // what its end may still do
	f.in <- answer(t, all[2].request, nil)
	if err := <-all[2].err; err != nil {
		t.Error(err)
	}
	if len(e.waiting) > 0 {
		t.Errorf("%d are still waited for", len(e.waiting))
	}
}

// An error of a write may be an earlier request's.
func TestICMPWrite(t *testing.T) {
	f := newFakeEcho()
	e := newEchoer(f, false, 16)
	f.refuse = []error{syscall.EHOSTUNREACH}
	f.errors = []failure{{nil, &UnreachableError{Err: syscall.EHOSTUNREACH}}}
	a := ask(t, e)
	f.in <- answer(t, a.request, nil)
	if err := <-a.err; err != nil {
		t.Error(err)
	}
	f.refuse = []error{syscall.ENODEV}
	_, err := e.probe(context.Background())
	if !errors.Is(err, syscall.ENODEV) || !errors.Is(err, errStale) || err.Error() != "cannot be sent: no such device" {
		t.Error(err)
	}
	f.refuse = []error{syscall.EHOSTUNREACH}
	if _, err = e.probe(context.Background()); !errors.Is(err, syscall.EHOSTUNREACH) || errors.Is(err, errStale) {
		t.Error(err)
	}
	f.refuse = []error{net.ErrClosed}
	if _, err = e.probe(context.Background()); err != ErrICMPClosed || !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
}

func TestICMPValidate(t *testing.T) {
	addr := netip.MustParseAddr
	for _, row := range []struct {
		p    *ICMP
		want string
	}{
		{&ICMP{}, "is not set"},
		{&ICMP{Addr: addr("0.0.0.0")}, "not the address of one host"},
		{&ICMP{Addr: addr("::")}, "not the address of one host"},
		{&ICMP{Addr: addr("255.255.255.255")}, "not the address of one host"},
		{&ICMP{Addr: addr("ff02::1%lo")}, "not the address of one host"},
		{&ICMP{Addr: addr("fe80::1")}, "needs a zone, as in fe80::1%eth0"},
		{&ICMP{Addr: addr("10.0.0.1"), Through: Through{Source: addr("::1")}}, "not of the family"},
		{&ICMP{Addr: addr("10.0.0.1"), Size: 15}, "Size is 15, not 16 to 65000"},
		{&ICMP{Addr: addr("10.0.0.1"), Size: -1}, "Size is -1, not 16 to 65000"},
		{&ICMP{Addr: addr("10.0.0.1"), Size: 65001}, "Size is 65001, not 16 to 65000"},
	} {
		if err := row.p.Validate(); err == nil || !strings.Contains(err.Error(), row.want) {
			t.Errorf("%+v: %v, want %q", row.p, err, row.want)
		}
		if _, err := row.p.Probe(context.Background()); err == nil || !strings.HasPrefix(err.Error(), "pathcontrol: ICMP.") {
			t.Errorf("%+v: %v", row.p, err)
		}
	}
	for _, p := range []*ICMP{{Addr: addr("10.0.0.1")}, {Addr: addr("fe80::1%lo")}, {Addr: addr("::1"), Size: 16}} {
		if err := p.Validate(); err != nil {
			t.Error(err)
		}
	}
}

// What strangers send is no reason to crash, and never an answer.
func FuzzEcho(f *testing.F) {
	f.Add([]byte{0, 0, 0, 0, 0, 77, 0, 1, 'x'}, false, false)
	f.Add([]byte{129, 0, 0, 0, 0, 77, 0, 1, 'x'}, true, false)
	f.Add([]byte{8, 0, 0, 0, 0, 77, 0, 1, 'x'}, false, true)
	f.Fuzz(func(t *testing.T, b []byte, v6, failed bool) {
		fake := newFakeEcho()
		e := newEchoer(fake, v6, 16)
		e.seq = 0
		_, r := e.begin()
		if failed {
			fake.errors = []failure{{b, &UnreachableError{Err: syscall.EHOSTUNREACH}}}
			e.fail()
		} else {
			e.take(b)
		}
		select {
		case <-r.done:
			if !failed {
				t.Errorf("%q is an answer", b)
			}
		default:
		}
	})
}

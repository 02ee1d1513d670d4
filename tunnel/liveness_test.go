package tunnel

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// fakePeer is the other side of a liveness, and keeps what happened when.
type fakePeer struct {
	*liveness
	start time.Time

	mu      sync.Mutex
	answers bool // to PINGs
	chatty  bool // sends other bytes all the time
	last    time.Time
	events  []string
}

func newFakePeer(config Liveness) *fakePeer {
	p := &fakePeer{start: time.Now(), last: time.Now(), answers: true}
	p.liveness = &liveness{
		config: config.withDefaults(),
		heard: func() time.Time {
			p.mu.Lock()
			defer p.mu.Unlock()
			if p.chatty {
				return time.Now()
			}
			return p.last
		},
		ping: func(m pingMessage) {
			p.note("ping")
			if p.set(func() bool { return p.answers }) {
				time.AfterFunc(40*time.Millisecond, func() {
					p.set(func() bool { p.last = time.Now(); return true })
					p.pong(m)
				})
			}
		},
		dead: func() { p.note("dead") },
		onChange: func(suspect bool) {
			p.note(map[bool]string{true: "suspect", false: "alive"}[suspect])
		},
	}
	p.liveness.start()
	return p
}

func (p *fakePeer) set(f func() bool) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return f()
}

func (p *fakePeer) note(event string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.events = append(p.events, fmt.Sprintf("%s %v", event, time.Since(p.start)))
}

func (p *fakePeer) freeze() { p.set(func() bool { p.answers = false; return false }) }
func (p *fakePeer) thaw()   { p.set(func() bool { p.answers = true; return false }) }

func (p *fakePeer) expect(t *testing.T, want ...string) {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	if !slices.Equal(p.events, want) {
		t.Errorf("events\n%q, want\n%q", p.events, want)
	}
	p.events = nil
}

func TestLivenessTimes(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		p := newFakePeer(Liveness{})
		time.Sleep(16 * time.Second)
		p.freeze()
		p.expect(t, "ping 5s", "ping 10s", "ping 15s")
		time.Sleep(time.Minute)
		p.expect(t, "ping 20s", "ping 21s", "suspect 21s", "ping 22s", "ping 23s", "dead 24s")
	})
}

func TestLivenessRecovers(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		p := newFakePeer(Liveness{})
		p.freeze()
		time.Sleep(6500 * time.Millisecond)
		if !p.isSuspect() {
			t.Error("not suspected")
		}
		p.thaw()
		time.Sleep(2 * time.Second)
		if p.isSuspect() {
			t.Error("still suspected")
		}
		p.expect(t, "ping 5s", "ping 6s", "suspect 6s", "ping 7s", "ping 8s", "alive 8s")
		time.Sleep(10 * time.Second)
		p.stop()
		p.set(func() bool { p.events = nil; return false })
		time.Sleep(time.Minute)
		p.expect(t) // nothing after stop
	})
}

// A dial asks at once, but not all of many dials.
func TestLivenessNudge(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		p := newFakePeer(Liveness{Interval: time.Hour})
		time.Sleep(nudgeEvery / 2)
		p.nudge() // a moment after the start
		p.expect(t)
		time.Sleep(500*time.Millisecond - nudgeEvery/2)
		time.Sleep(time.Minute)
		p.nudge()
		p.nudge() // one is under way
		p.expect(t, "ping 1m0.5s")
		time.Sleep(1500 * time.Millisecond)
		p.freeze()
		p.nudge()
		time.Sleep(time.Hour)
		p.expect(t, "ping 1m2s", "ping 1m3s", "suspect 1m3s", "ping 1m4s", "ping 1m5s", "dead 1m6s")
		p.nudge() // of a dead one
		p.expect(t)
	})
}

func TestLivenessSwitchedOff(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		p := newFakePeer(Liveness{Suspect: -1})
		p.freeze()
		time.Sleep(12 * time.Second)
		p.nudge()
		if p.isSuspect() {
			t.Error("suspected, although that is off")
		}
		p.expect(t, "ping 5s", "ping 10s")
		p.stop()

		p = newFakePeer(Liveness{Dead: -1})
		p.freeze()
		time.Sleep(30 * time.Second)
		if !p.isSuspect() || p.set(func() bool { return slices.Contains(p.events, "dead 9s") }) {
			t.Error("given up, or not suspected")
		}
		p.stop()
	})
}

// Bytes that come are an answer, but not for ever: see stuck.
func TestLivenessStuckControl(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		p := newFakePeer(Liveness{})
		p.set(func() bool { p.chatty, p.answers = true, false; return false })
		time.Sleep(time.Hour)
		p.expect(t, "ping 5s", "dead 1m5s")
	})
}

// Pending dials are moved when the agent becomes suspect, each once; those
// that are done are not, and those that come later at once.
func TestLivenessMovesDials(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		p := newFakePeer(Liveness{})
		p.freeze()
		moved := make(chan string, 10)
		stay := p.pending(func() { moved <- "done" })
		end := p.pending(func() { moved <- "pending" })
		stay()
		time.Sleep(5999 * time.Millisecond)
		if len(moved) != 0 {
			t.Error("moved before suspicion")
		}
		time.Sleep(10 * time.Millisecond)
		p.pending(func() { moved <- "later" })()
		time.Sleep(2 * time.Second)
		end()
		var got []string
		for len(moved) > 0 {
			got = append(got, <-moved)
		}
		if !slices.Equal(got, []string{"pending", "later"}) {
			t.Errorf("moved %q", got)
		}
		p.stop()
	})
}

func TestRoundTripAndLoss(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		p := newFakePeer(Liveness{})
		if rtt, jitter, loss := p.roundTrip(); rtt != 0 || jitter != 0 || loss != 0 {
			t.Errorf("before the first answer: %v, %v, %v", rtt, jitter, loss)
		}
		time.Sleep(5*time.Second + 20*time.Millisecond)
		if _, _, loss := p.roundTrip(); loss != 0 {
			t.Errorf("loss %v while the first PING is under way", loss)
		}
		time.Sleep(time.Minute)
		if rtt, jitter, loss := p.roundTrip(); rtt != 40*time.Millisecond || jitter > 10*time.Millisecond || loss != 0 {
			t.Errorf("after a minute: %v, %v, %v; want 40 ms", rtt, jitter, loss)
		}
		for _, forged := range []pingMessage{{}, {Seq: 1 << 60}, {Seq: 1, Sent: 0}, {Seq: 1, Sent: time.Now().Add(time.Hour).UnixNano()}} {
			p.pong(forged)
		}
		if rtt, _, _ := p.roundTrip(); rtt != 40*time.Millisecond {
			t.Errorf("forged answers made it %v", rtt)
		}
		p.stop()
		p = newFakePeer(Liveness{Dead: -1})
		p.freeze()
		time.Sleep(8500 * time.Millisecond) // 5, 6, 7, 8 s
		if _, _, loss := p.roundTrip(); loss != 1 {
			t.Errorf("loss %v without any answer", loss)
		}
		p.thaw()
		time.Sleep(2500 * time.Millisecond) // 9, 10 s
		if _, _, loss := p.roundTrip(); loss <= 0.5 || loss >= 0.8 {
			t.Errorf("loss %v after 4 of 6 were lost", loss)
		}
		p.stop()
	})
}

// The round trip of a real session is that of its carrier.
func TestSessionRoundTrip(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		a, b := tunneltest.Pipe()
		opener, accepter := sessionsOver(t, a, b)
		a.(*tunneltest.Conn).SetDelay(30 * time.Millisecond)
		b.(*tunneltest.Conn).SetDelay(70 * time.Millisecond)
		time.Sleep(time.Minute)
		for name, s := range map[string]*session{"server": opener, "agent": accepter} {
			if rtt, jitter, loss := s.live.roundTrip(); rtt != 100*time.Millisecond || jitter > 20*time.Millisecond || loss != 0 {
				t.Errorf("%s: %v, %v, loss %v; want 100 ms", name, rtt, jitter, loss)
			}
		}
	})
}

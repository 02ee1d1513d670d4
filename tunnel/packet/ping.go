package packet

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// maxPing bounds the payload of PING and PONG.
	maxPing = 256
	// maxPongs is how many PINGs a second are answered.
	maxPongs = 20
	// maxPongsQueued is how many answers wait to be written.
	maxPongsQueued = 8
	// pingWindow is how many PINGs count for the loss: 16 s.
	pingWindow = 32
)

// pinger measures the way to the peer and back.
type pinger struct {
	mu       sync.Mutex
	seq      uint64 // of the last one, and so how many there were
	answers  uint64 // that were looked at
	recent   [pingWindow]sentPing
	last     time.Duration
	smoothed time.Duration
}

// sentPing is a PING; times count from the birth of the link.
type sentPing struct {
	seq  uint64 // 0: none
	sent time.Duration
	rtt  time.Duration // 0: unanswered
}

// next counts a PING that is about to be sent.
func (p *pinger) next(now time.Duration) pingMessage {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.seq++
	p.recent[p.seq%pingWindow] = sentPing{seq: p.seq, sent: now}
	return pingMessage{Seq: p.seq, Sent: int64(now)}
}

// expects reports whether an answer is to be looked at: a few for each PING, so that a
// flood of them costs no decoding.
func (p *pinger) expects() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.answers >= 4*(p.seq+1) {
		return false
	}
	p.answers++
	return true
}

// pong takes an answer; what answers nothing is ignored.
func (p *pinger) pong(m pingMessage, now time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := &p.recent[m.Seq%pingWindow]
	if m.Seq == 0 || s.seq != m.Seq || int64(s.sent) != m.Sent || s.rtt != 0 {
		return
	}
	s.rtt = max(now-s.sent, 1)
	p.last = s.rtt
	if p.smoothed == 0 {
		p.smoothed = s.rtt
	}
	p.smoothed += (s.rtt - p.smoothed) / 8 // RFC 6298 §2
}

// stats are the last and the smoothed round trip, and the share of PINGs whose
// answer took longer than late, or did not come within that time.
func (p *pinger) stats(now, late time.Duration) (last, smoothed time.Duration, loss float64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	counted, lost := 0, 0
	for _, s := range p.recent {
		switch {
		case s.seq == 0 || s.rtt == 0 && now-s.sent <= late:
			continue // under way
		case s.rtt == 0 || s.rtt > late:
			lost++
		}
		counted++
	}
	if counted > 0 {
		loss = float64(lost) / float64(counted)
	}
	return p.last, p.smoothed, loss
}

// connCounts are what ConnStats shows.
type connCounts struct {
	readPackets, readBytes       atomic.Uint64
	writtenPackets, writtenBytes atomic.Uint64
	bad, unfit, tooLong          atomic.Uint64
	ignored, skipped             atomic.Uint64
}

// ConnStats is how a link does.
type ConnStats struct {
	// RTT is the last round trip of a PING and Smoothed their moving average;
	// zero before the first.
	RTT      time.Duration `json:"rtt"`
	Smoothed time.Duration `json:"smoothed"`
	// Loss is the share of the last 32 PINGs that were answered late, after
	// twice the time between two, or not at all: 0 to 1. Over TCP nothing gets
	// lost, it gets late.
	Loss float64 `json:"loss"`
	// Packets and bytes with their frames, control frames aside.
	ReadPackets    uint64 `json:"readPackets"`
	ReadBytes      uint64 `json:"readBytes"`
	WrittenPackets uint64 `json:"writtenPackets"`
	WrittenBytes   uint64 `json:"writtenBytes"`
	// Bad is how many packets of the peer were dropped because they were wrong,
	// Unfit how many of ours because the peer does not take them as they were.
	Bad   uint64 `json:"bad"`
	Unfit uint64 `json:"unfit"`
	// TooLong is how many packets of ours were dropped because they, or segments of
	// them, were longer than the link's MTU: the network behind the peer would not
	// take them.
	TooLong uint64 `json:"tooLong"`
	// Ignored is how many control frames of the peer were skipped: of an unknown
	// type, not wanted, or too many PINGs or PONGs.
	Ignored uint64 `json:"ignored"`
	// SkippedMembers is how many members the peer told of that were out of bounds, in
	// all its REACH together.
	SkippedMembers uint64 `json:"skippedMembers"`
}

// Stats tells how the link does. It can be called at any time.
func (c *Conn) Stats() ConnStats {
	s := ConnStats{
		ReadPackets: c.counts.readPackets.Load(), ReadBytes: c.counts.readBytes.Load(),
		WrittenPackets: c.counts.writtenPackets.Load(), WrittenBytes: c.counts.writtenBytes.Load(),
		Bad: c.counts.bad.Load(), Unfit: c.counts.unfit.Load(), TooLong: c.counts.tooLong.Load(),
		Ignored: c.counts.ignored.Load(), SkippedMembers: c.counts.skipped.Load(),
	}
	s.RTT, s.Smoothed, s.Loss = c.pings.stats(time.Since(c.born), 2*c.o.Ping)
	return s
}

// Run sends PINGs and what else there is to say, and ends the link when the peer
// is silent. It begins soon after Handshake, since the peer waits for PINGs, and blocks
// until the link has ended; ending ctx ends it at once. It returns
// why, never nil.
func (c *Conn) Run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { c.fail(context.Cause(ctx)) })
	defer stop()
	if c.o.Dead > 0 {
		defer c.watch()()
	}
	var ticks <-chan time.Time
	if c.o.Ping > 0 {
		t := time.NewTicker(c.o.Ping)
		defer t.Stop()
		ticks = t.C
		c.ping()
	}
	for {
		c.flush()
		select {
		case <-ticks:
			c.ping()
		case <-c.wake:
		case <-c.over:
			return c.failure()
		}
	}
}

func (c *Conn) ping() { c.out.ping(c.pings.next(time.Since(c.born))) }

// watch ends the link when the peer is silent. Its timer looks at how long the
// reader has waited, and sleeps for the rest. The result ends it.
func (c *Conn) watch() (stop func()) {
	var t *time.Timer
	t = time.AfterFunc(time.Hour, func() {
		rest := c.o.Dead
		if since := c.waiting.Load(); since > 0 {
			rest -= time.Since(c.born) - time.Duration(since-1)
		}
		switch {
		case rest <= 0:
			c.fail(ErrDead)
		case c.failure() == nil:
			t.Reset(rest)
		}
	})
	t.Reset(c.o.Dead)
	return func() { t.Stop() }
}

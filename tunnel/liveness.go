package tunnel

import (
	"sync"
	"time"
)

// Liveness says when the other side of a session is suspected and when it is
// given up. Zero fields mean the default, negative ones switch that step off.
//
//	        ┌──────────── any byte ───────────┐
//	        ▼                                 │
//	alive ──PING, silence for Suspect──► suspect ──silence for Dead──► dead
//
// A PING goes out every Interval, and with each dial. Whatever comes from the peer counts as an answer, so
// that a PING which waits behind bulk data raises no alarm.
type Liveness struct {
	// Interval is the time between two PINGs, by default 5 s.
	Interval time.Duration
	// Suspect is how long a PING may be unanswered, by default 1 s. A
	// suspect agent is picked last, its pending dials move to another agent,
	// and it is PINGed each Suspect.
	Suspect time.Duration
	// Dead is how long after suspicion the session is ended, by default 3 s.
	Dead time.Duration
}

func (l Liveness) withDefaults() Liveness {
	return Liveness{
		Interval: orDefault(l.Interval, 5*time.Second),
		Suspect:  orDefault(l.Suspect, time.Second),
		Dead:     orDefault(l.Dead, 3*time.Second),
	}
}

// stuck is how long a PING may be unanswered while bytes still come: then the
// peer's control loop is stuck.
const stuck = time.Minute

// liveness is the state of one session's peer. It owns one timer and no
// goroutine.
type liveness struct {
	config   Liveness
	heard    func() time.Time  // when the last byte came
	ping     func(pingMessage) // sends, without blocking
	dead     func()            // ends the session; may block
	onChange func(suspect bool)

	mu       sync.Mutex
	timer    *time.Timer
	stopped  bool
	seq      uint64
	lastPing time.Time
	recent   [16]pingMessage // that may be answered
	oldest   time.Time       // of the unanswered PINGs; zero: none
	awaited  uint64          // its number
	suspect  time.Time       // since when; zero: not suspected
	moves    map[*func()]struct{}

	rtt, jitter time.Duration
	sent, got   uint64
}

func (l *liveness) start() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lastPing = time.Now()
	l.moves = make(map[*func()]struct{})
	l.timer = time.AfterFunc(l.interval(), l.tick)
}

func (l *liveness) stop() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stopped = true
	if l.timer != nil {
		l.timer.Stop()
	}
}

// interval is the time to the next PING; none comes within a lifetime if that
// is switched off.
func (l *liveness) interval() time.Duration {
	if l.config.Interval < 0 {
		return never
	}
	return l.config.Interval
}

const never = 100 * 365 * 24 * time.Hour

// nudgeEvery is how often dials have the peer PINGed.
const nudgeEvery = 100 * time.Millisecond

// nudge is told of a dial: the peer is PINGed now, so that it is suspected in
// time if it has just died.
func (l *liveness) nudge() {
	l.mu.Lock()
	if l.stopped || time.Since(l.lastPing) < nudgeEvery || !l.oldest.IsZero() || l.config.Suspect < 0 {
		l.mu.Unlock()
		return
	}
	m := l.nextPing(time.Now())
	l.schedule(l.config.Suspect)
	l.mu.Unlock()
	l.ping(m)
}

// nextPing counts a PING that is about to be sent.
func (l *liveness) nextPing(now time.Time) pingMessage {
	l.seq++
	l.sent++
	l.lastPing = now
	if l.oldest.IsZero() {
		l.oldest, l.awaited = now, l.seq
	}
	m := pingMessage{Seq: l.seq, Sent: now.UnixNano()}
	l.recent[l.seq%uint64(len(l.recent))] = m
	return m
}

func (l *liveness) schedule(d time.Duration) {
	if !l.stopped {
		l.timer.Reset(max(d, time.Millisecond))
	}
}

// pong takes an answer.
func (l *liveness) pong(m pingMessage) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if m.Seq == 0 || l.recent[m.Seq%uint64(len(l.recent))] != m {
		return // not an answer to a PING that it has read
	}
	l.recent[m.Seq%uint64(len(l.recent))] = pingMessage{}
	l.got++
	if m.Seq >= l.awaited {
		l.oldest = time.Time{}
	}
	rtt := time.Since(time.Unix(0, m.Sent))
	if l.rtt == 0 {
		l.rtt, l.jitter = rtt, rtt/2
		return
	}
	// RFC 6298 §2.
	l.jitter += ((rtt - l.rtt).Abs() - l.jitter) / 4
	l.rtt += (rtt - l.rtt) / 8
}

// tick moves the state machine; the timer calls it.
func (l *liveness) tick() {
	l.mu.Lock()
	if l.stopped {
		l.mu.Unlock()
		return
	}
	var (
		now     = time.Now()
		heard   = l.heard()
		ping    *pingMessage
		change  func()
		next    = l.interval()
		send    = func() { m := l.nextPing(now); ping = &m }
		waiting = !l.oldest.IsZero()
	)
	// Silence counts from the last byte or from the PING, whichever is later.
	silence := now.Sub(heard)
	if waiting && heard.Before(l.oldest) {
		silence = now.Sub(l.oldest)
	}
	switch {
	case !l.suspect.IsZero() && heard.After(l.suspect):
		l.suspect = time.Time{}
		change = func() { l.onChange(false) }
		send()
		next = l.config.Suspect
	case !l.suspect.IsZero() && l.config.Dead >= 0 && now.Sub(l.suspect) >= l.config.Dead,
		waiting && now.Sub(l.oldest) >= stuck && l.config.Suspect >= 0 && l.config.Dead >= 0:
		l.stopped = true
		l.mu.Unlock()
		l.dead()
		return
	case !l.suspect.IsZero():
		send()
		next = l.config.Suspect
		if l.config.Dead >= 0 {
			next = min(next, l.config.Dead-now.Sub(l.suspect))
		}
	case waiting && l.config.Suspect >= 0 && silence >= l.config.Suspect:
		l.suspect = now
		change = l.suspected()
		send()
		next = l.config.Suspect
		if l.config.Dead >= 0 {
			next = min(next, l.config.Dead)
		}
	case waiting && l.config.Suspect >= 0:
		next = l.config.Suspect - silence
	case now.Sub(l.lastPing) >= l.interval():
		send()
		if l.config.Suspect >= 0 {
			next = min(next, l.config.Suspect)
		}
	default:
		next = l.interval() - now.Sub(l.lastPing)
	}
	l.schedule(next)
	l.mu.Unlock()
	if ping != nil {
		l.ping(*ping)
	}
	if change != nil {
		change()
	}
}

// suspected collects what is to be done, outside the lock, for a new suspect.
func (l *liveness) suspected() func() {
	moves := make([]func(), 0, len(l.moves))
	for m := range l.moves {
		moves = append(moves, *m)
	}
	return func() {
		l.onChange(true)
		for _, move := range moves {
			move()
		}
	}
}

// pending registers a dial that waits for the peer's answer: move is called
// when the peer becomes suspect, at once if it is. The result ends that.
func (l *liveness) pending(move func()) (done func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.suspect.IsZero() {
		go move()
		return func() {}
	}
	key := &move
	l.moves[key] = struct{}{}
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.moves, key)
	}
}

func (l *liveness) isSuspect() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return !l.suspect.IsZero()
}

// roundTrip is the smoothed round-trip time and its variation, zero before the
// first answer, and the share of PINGs that were not answered.
func (l *liveness) roundTrip() (rtt, jitter time.Duration, loss float64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.sent > 0 {
		unanswered := l.sent - min(l.got, l.sent)
		if !l.oldest.IsZero() && time.Since(l.oldest) < l.config.Suspect && unanswered > 0 {
			unanswered-- // still under way
		}
		loss = float64(unanswered) / float64(l.sent)
	}
	return l.rtt, l.jitter, loss
}

// orDefault resolves the rule of all our settings: zero means the default,
// negative disables and stays negative.
func orDefault[T ~int | ~int64 | ~float64](v, def T) T {
	if v == 0 {
		return def
	}
	return v
}

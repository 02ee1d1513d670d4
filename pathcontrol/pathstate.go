package pathcontrol

import (
	"errors"
	"fmt"
	"time"
)

// pathState is what is known of a path. The loop of Run owns it.
type pathState struct {
	Path
	order    int // in Controller.Paths
	trackers []*tracker

	state     State
	since     time.Time
	hold      time.Duration // what Rise is now
	falls     uint64
	answering time.Time // since when all probers answer; zero: not all do
	better    time.Time // since when it is clearly better than the path in use
}

func newPathState(p Path, order int, h *Hysteresis, now time.Time) *pathState {
	s := &pathState{Path: p, order: order, since: now, hold: h.Rise}
	for i, prober := range p.Probers {
		s.trackers = append(s.trackers, &tracker{prober: prober, name: proberName(prober, i), path: p.Name})
	}
	return s
}

// update looks at what the trackers know now and returns what became of the
// path, and why, if that is something new. It comes up only if it may rise. While
// all is fresh, its first answer is enough, as nothing bad is known of it.
func (p *pathState) update(h *Hysteresis, now time.Time, rise, fresh bool) (kind EventKind, reason string) {
	worst, answering, clean := p.trackers[0], true, p.clean()
	for _, t := range p.trackers {
		if t.misses > worst.misses {
			worst = t
		}
		answering = answering && t.answering()
	}
	switch {
	case !answering:
		p.answering = time.Time{}
	case p.answering.IsZero():
		p.answering = now
	}
	switch {
	case p.state != Down && worst.misses >= h.Fall:
		if p.state == Up {
			p.hold = h.afterFall(p.hold, now.Sub(p.since), p.falls == 0)
		}
		p.falls++
		p.set(Down, now)
		if errors.Is(worst.err, ErrGone) {
			return PathDown, fmt.Sprintf("%s: %v", worst.name, worst.err)
		}
		return PathDown, fmt.Sprintf("%d probes in a row were missed; %s: %v", worst.misses, worst.name, worst.err)
	case !rise || p.state == Up || !answering:
	case p.state == Unknown && fresh:
		p.set(Up, now)
		return PathUp, "it answers"
	case clean >= p.hold:
		p.set(Up, now)
		return PathUp, fmt.Sprintf("every probe was answered for %v", clean)
	}
	return "", ""
}

func (p *pathState) set(s State, now time.Time) { p.state, p.since = s, now }

// clean is for how long every probe has been answered, of all probers.
func (p *pathState) clean() time.Duration {
	clean := p.trackers[0].cleanFor()
	for _, t := range p.trackers[1:] {
		clean = min(clean, t.cleanFor())
	}
	return clean
}

// misses is how many probes in a row the worst prober has missed.
func (p *pathState) misses() int {
	n := 0
	for _, t := range p.trackers {
		n = max(n, t.misses)
	}
	return n
}

// quality is that of the prober with the worst score.
func (p *pathState) quality() *quality {
	worst := &p.trackers[0].quality
	for _, t := range p.trackers {
		if s := t.quality.score(); s == 0 {
			return &t.quality
		} else if s > worst.score() {
			worst = &t.quality
		}
	}
	return worst
}

// lastMiss is the tracker with the newest miss, nil if none has any.
func (p *pathState) lastMiss() *tracker {
	var newest *tracker
	for _, t := range p.trackers {
		if t.err != nil && (newest == nil || t.errAt.After(newest.errAt)) {
			newest = t
		}
	}
	return newest
}

// due is when the next probe of a tracker is to be sent. Haste is asked for
// where another path waits for this one's answer.
func (p *pathState) due(t *tracker, h *Hysteresis, haste bool) time.Time {
	switch {
	case t.seq == 0:
		return time.Time{}
	case haste, p.state != Down && t.misses > 0, p.state == Unknown && t.answered == 0:
		return t.last.Add(h.AfterMiss)
	}
	return t.last.Add(h.Interval)
}

// status is a copy for an operator.
func (p *pathState) status(h *Hysteresis, now time.Time) PathStatus {
	s := PathStatus{
		Name: p.Name, Preference: p.Preference, State: p.state, Since: p.since,
		Misses: p.misses(), Hold: p.hold, Falls: p.falls,
	}
	if p.state == Up {
		s.Hold = h.decayed(p.hold, now.Sub(p.since))
	}
	if len(p.trackers) == 0 {
		return s
	}
	worst := p.quality()
	s.Score, s.RTT, s.Variation = worst.score(), worst.roundTrip(), worst.variation()
	s.Clean = p.clean()
	for _, t := range p.trackers {
		q := &t.quality
		s.Loss = max(s.Loss, q.loss.mean())
		if t.answeredAt.After(s.LastAnswer) {
			s.LastAnswer = t.answeredAt
		}
		one := ProberStatus{
			Name: t.name, RTT: q.roundTrip(), Loss: q.loss.mean(),
			Misses: t.misses, Sent: t.seq, Lost: t.lost, Hung: t.hung(),
		}
		if t.err != nil {
			one.LastError = t.err.Error()
		}
		s.Probers = append(s.Probers, one)
	}
	if t := p.lastMiss(); t != nil {
		s.LastError, s.LastMiss = fmt.Sprintf("%s: %v", t.name, t.err), t.errAt
	}
	return s
}

package pathcontrol

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// decide chooses a path if there is need or a better one. It returns when it
// must look again even if nothing happens, zero if never.
func (r *run) decide(now time.Time) (again time.Time) {
	up := r.pathsThat(func(p *pathState) bool { return p.state == Up })
	if len(up) > 0 {
		r.allDown = false
	}
	switch {
	case r.chosen != nil && r.chosen.state == Up:
		r.voluntary(up, now)
	case len(up) > 0:
		r.choose(up[0], r.whyNeeded(up), now)
	default:
		return r.emergency(now)
	}
	return time.Time{}
}

// pathsThat are in the order in which they would be chosen if the path in use
// were of no use.
func (r *run) pathsThat(is func(*pathState) bool) []*pathState {
	var list []*pathState
	for _, p := range r.paths {
		if is(p) {
			list = append(list, p)
		}
	}
	slices.SortStableFunc(list, r.compare)
	return list
}

// compare puts first what is chosen first.
func (r *run) compare(a, b *pathState) int {
	if c := r.compareWishes(a, b); c != 0 {
		return c
	}
	return cmp.Compare(scoreRank(a), scoreRank(b))
}

// compareWishes is compare but for the score, which a path has only when it has
// answered.
func (r *run) compareWishes(a, b *pathState) int {
	suspect := cmp.Compare(r.suspect(a), r.suspect(b))
	preferred := cmp.Compare(a.Preference, b.Preference)
	chosen := cmp.Compare(r.isOther(a), r.isOther(b))
	if r.c.Failback == Always {
		return cmp.Or(suspect, preferred, chosen)
	}
	return cmp.Or(suspect, chosen, preferred)
}

// suspect is 1 for a path that may be dying together with the one that is left.
// Half of Fall is more than what chance loses and less than what another path
// has missed that died at the same moment.
func (r *run) suspect(p *pathState) int {
	if p.state == Up && 2*p.misses() >= r.h.Fall {
		return 1
	}
	return 0
}

func (r *run) isOther(p *pathState) int {
	if p == r.chosen {
		return 0
	}
	return 1
}

func scoreRank(p *pathState) time.Duration {
	if s := p.quality().score(); s > 0 {
		return s
	}
	return 1<<63 - 1
}

// voluntary looks for a path to leave a working one for.
func (r *run) voluntary(up []*pathState, now time.Time) {
	switch r.c.Failback {
	case Always:
		for _, p := range up {
			if p.Preference < r.chosen.Preference && p.misses() == 0 {
				r.choose(p, fmt.Sprintf("%s is preferred and up again: every probe was answered for %v", p.Name, p.clean()), now)
				return
			}
		}
	case Better:
		r.voluntaryByScore(up, now)
	}
}

func (r *run) voluntaryByScore(up []*pathState, now time.Time) {
	dwell := max(orDefault(r.c.Dwell, time.Minute), 0)
	margin := max(orDefault(r.c.Margin, 0.25), 0)
	var best *pathState
	for _, p := range r.paths {
		switch {
		case p == r.chosen || !slices.Contains(up, p) || !clearlyBetter(p.quality(), r.chosen.quality(), margin):
			p.better = time.Time{}
			continue
		case p.better.IsZero():
			p.better = now
		}
		if now.Sub(p.better) >= dwell && p.misses() == 0 && (best == nil || scoreRank(p) < scoreRank(best)) {
			best = p
		}
	}
	if best != nil && now.Sub(r.since) >= dwell {
		r.choose(best, fmt.Sprintf("its score was better for %v, now %v against %v of %s", dwell,
			round(best.quality().score()), round(r.chosen.quality().score()), r.chosen.Name), now)
	}
}

// round is for reasons, which are for people.
func round(d time.Duration) time.Duration { return d.Round(100 * time.Microsecond) }

// emergency takes the first path that answers, since none is up.
func (r *run) emergency(now time.Time) (again time.Time) {
	answering := r.pathsThat(func(p *pathState) bool { return !p.answering.IsZero() })
	if len(answering) == 0 {
		if !r.allDown && len(r.pathsThat(func(p *pathState) bool { return p.state != Down })) == 0 {
			r.allDown = true
			name, stays := "", "nothing is in use yet"
			if r.chosen != nil {
				name, stays = r.chosen.Name, "the routes stay with "+r.chosen.Name
			}
			r.tell(Event{Time: now, Kind: AllDown, Path: name, Reason: "no path is up; " + stays})
		}
		return time.Time{}
	}
	best, first := answering[0], now
	for _, p := range answering {
		if p.answering.Before(first) {
			first = p.answering
		}
	}
	settled := first.Add(max(orDefault(r.c.Settle, time.Second), 0))
	if r.settled.IsZero() {
		r.settled = settled
	}
	missing := r.pathsThat(func(p *pathState) bool { return p.answering.IsZero() && r.compareWishes(p, best) < 0 })
	if len(missing) > 0 && now.Before(settled) {
		return settled
	}
	why := "the only one that answers, and none is up"
	if len(answering) > 1 {
		why = fmt.Sprintf("chosen of %d that answer, and none is up", len(answering))
	}
	for _, p := range answering {
		if p == best || p.state == Unknown {
			p.set(Up, now)
			r.tell(Event{Time: now, Kind: PathUp, Path: p.Name, Reason: "it answers, and no path was up"})
		}
	}
	r.allDown = false
	r.choose(best, why, now)
	return time.Time{}
}

// haste tells whether a path that answers waits for others to answer, which are
// then asked more often.
func (r *run) haste() bool {
	return !r.anyUp() && slices.ContainsFunc(r.paths, func(p *pathState) bool { return !p.answering.IsZero() })
}

// whyNeeded says why the path in use is left and the first of others taken.
func (r *run) whyNeeded(others []*pathState) string {
	best := others[0]
	why := ""
	if r.chosen != nil {
		why = r.chosen.Name + " is down"
		if t := r.chosen.lastMiss(); t != nil {
			why = fmt.Sprintf("%s (%s: %v)", why, t.name, t.err)
		}
		why += "; "
	}
	if len(others) == 1 {
		return why + best.Name + " is the only one that is up"
	}
	second := others[1]
	switch {
	case r.suspect(best) != r.suspect(second):
		return why + best.Name + " is the only one that answers"
	case best.Preference != second.Preference:
		return fmt.Sprintf("%s%s is preferred of %d that are up", why, best.Name, len(others))
	}
	return fmt.Sprintf("%s%s has the best score of %d that are equally preferred, %v", why, best.Name, len(others), round(best.quality().score()))
}

// choose makes p the path to use.
func (r *run) choose(p *pathState, reason string, now time.Time) {
	if p == r.chosen {
		return
	}
	from := ""
	if r.chosen != nil {
		from = r.chosen.Name
		r.switches++
	}
	r.chosen, r.since, r.reason, r.assumed = p, now, reason, false
	for _, other := range r.paths {
		other.better = time.Time{}
	}
	r.tell(Event{Time: now, Kind: Switched, Path: p.Name, From: from, Reason: reason})
}

package pathcontrol

import (
	"math"
	"time"
)

// quality is what the answers of one prober say about RTT and loss, smoothed:
// what happened 30 s ago counts for 1/e. A probe weighs as much as the time since
// the one before it, because after a miss they come more often.
type quality struct {
	last time.Time // when the newest probe was sent
	rtt  average   // of those that were answered, in seconds
	dev  average   // how far each was from rtt
	loss average   // 1 for a miss, 0 for an answer
}

const (
	memory = 30 * time.Second
	// lossCost is what a lost packet costs: 1 % of loss is as bad as 10 ms.
	lossCost = time.Second
	// leastGain is a difference that nobody leaves a path for.
	leastGain = 5 * time.Millisecond
	// certainty is how many standard errors are no chance any more.
	certainty = 3
)

// average is a weighted mean that forgets.
type average struct {
	weight, squares, sum float64
}

func (a *average) add(x, weight, keep float64) {
	a.weight = a.weight*keep + weight
	a.squares = a.squares*keep*keep + weight*weight
	a.sum = a.sum*keep + weight*x
}

func (a *average) mean() float64 {
	if a.weight == 0 {
		return 0
	}
	return a.sum / a.weight
}

// samples is how many values of equal weight would tell as much.
func (a *average) samples() float64 {
	if a.squares == 0 {
		return 0
	}
	return a.weight * a.weight / a.squares
}

// add takes the verdict on a probe. An interval is its weight 1.
func (q *quality) add(sent time.Time, interval, rtt time.Duration, missed bool) {
	weight, keep := 1.0, 1.0
	if !q.last.IsZero() {
		since := max(sent.Sub(q.last), 0)
		weight = min(float64(since)/float64(interval), 1)
		keep = math.Exp(-float64(since) / float64(memory))
	}
	if sent.After(q.last) {
		q.last = sent
	}
	if missed {
		q.loss.add(1, weight, keep)
		return
	}
	q.loss.add(0, weight, keep)
	x := rtt.Seconds()
	if q.rtt.weight > 0 {
		q.dev.add(math.Abs(x-q.rtt.mean()), weight, keep)
	}
	q.rtt.add(x, weight, keep)
}

func (q *quality) roundTrip() time.Duration { return seconds(q.rtt.mean()) }
func (q *quality) variation() time.Duration { return seconds(q.dev.mean()) }

// score is what a packet and its answer take, losses included: the less the
// better. It is zero before the first answer.
func (q *quality) score() time.Duration {
	if q.rtt.weight == 0 {
		return 0
	}
	return q.roundTrip() + seconds(q.loss.mean()*lossCost.Seconds())
}

// variance is the square of the score's standard error, in seconds².
func (q *quality) variance() float64 {
	v := 0.0
	if n := q.loss.samples(); n > 0 {
		p := q.loss.mean()
		v += p * (1 - p) / n * lossCost.Seconds() * lossCost.Seconds()
	}
	if n := q.rtt.samples(); n > 0 {
		sigma := 1.25 * q.dev.mean() // of a normal distribution
		v += sigma * sigma / n
	}
	return v
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// clearlyBetter tells whether a score is better by a margin, and by more than
// chance explains.
func clearlyBetter(q, than *quality, margin float64) bool {
	if q.score() == 0 || than.score() == 0 {
		return false
	}
	gain := than.score() - q.score()
	need := margin*than.score().Seconds() + certainty*math.Sqrt(q.variance()+than.variance())
	return gain >= leastGain && gain.Seconds() > need
}

// Package pathcontrol decides which of several paths is used: it probes them all,
// leaves one that is dead for one that is not, and moves the routes.
//
//	router := &pathcontrol.NetlinkRouter{Networks: networks, Hops: hops}
//	err := router.Up()
//	c := &pathcontrol.Controller{
//		Paths: []pathcontrol.Path{
//			{Name: "a", Preference: 0, Probers: []pathcontrol.Prober{&pathcontrol.ICMP{Addr: a}}},
//			{Name: "b", Preference: 1, Probers: []pathcontrol.Prober{&pathcontrol.ICMP{Addr: b}}},
//		},
//		Use: router.Use,
//	}
//	err = c.Run(ctx)                       // blocks, owns its goroutines
//
// In a Gardener seed it runs beside each kube-apiserver, and the paths are the
// shoot's clients of the tunnel:
//
//	                          ┌─► shoot client a ─┐
//	kube-apiserver ─► bond0 ──┤                   ├─► pods, services, nodes
//	             route via a  └─► shoot client b ─┘
//	                 ▲                 │
//	      NetlinkRouter ◄── Controller ┘ probes a, b, and what is behind them
//
// # When a path is down
//
// A path is probed each half second, and each tenth of one while answers are
// missing. It is down when twelve probes in a row have had no answer, which is
// within 2.5 s of its death, see [Hysteresis.FallWithin]; and up again when it
// has answered every probe for 3 s. So neither loss nor delay is taken for death:
// of a path that loses 20 % of its packets twelve in a row are lost once in 0.2^12.
//
//	last answer   0 s
//	1st miss      sent at 0.5 s, known at 1.0 s
//	2nd … 12th    sent at 1.0 s, 1.1 s … 2.0 s
//	down          2.5 s, half a second after the 12th
//
// A path that comes and goes does not make the routes do so. If it falls within a
// minute of coming up, it has to answer for twice as long the next time, up to a
// minute; each minute that it is up halves that again. See [Hysteresis].
//
// Several probers of a path are judged each by itself, and all have to answer. One
// should ask the far end, so that an error says where the path ends, and one
// something behind it, because a far end that answers is of no use if its own
// network is gone. Through which path the packets of a prober go is the business of
// its [Through], or of [NetlinkRouter.Control].
//
// # Which path is used
//
// The one with the lowest Preference of those that are up, and of equals the one
// with the best score: the time of a round trip plus 10 ms for each percent that is
// lost, both smoothed over half a minute. A path that works is left only if
// [Failback] says so. When no path is up, nothing is changed, and the first one
// that answers is taken. Every switch has its reason in an [Event], in the log and
// in [Status].
//
// # What cannot hold it up
//
// One goroutine decides, and it waits for nothing but time: each call of a [Prober]
// and of Use has a goroutine of its own. A prober that hangs is a miss when its
// time is over, and so is one that panics; Use that fails is called again, and
// while it hangs, probing and deciding go on. Time is monotonic: setting the clock
// changes nothing. A process that was stopped for a while finds only the probes
// missed that were under way.
//
// # Goroutines
//
// Whoever blocks owns them:
//
//	Controller.Run     one per call of a Prober, of which at most ten hang around
//	                   for each by default; one for Use; one for OnEvent and
//	                   the log
//	NetlinkRouter.Run  one that hears the kernel's news
//	probers            none: who calls Probe waits for the answer
//
// All are gone when Run returns, but for calls that have not returned a second
// after their context has ended: nothing can end those.
//
// # What it does not do
//
// It does not keep connections alive that cannot live on another path, as where
// each far end translates addresses. It does not spread traffic over paths. It sees
// one host: where both ends choose, the tunnel has to make them choose alike, as
// package bond does. A path that loses more than half of its packets may be up or
// down.
package pathcontrol

// Package guard is what every port in the open internet needs before it knows
// who is there: an accept loop that survives, a bound on strangers that a flood
// hits itself with, and a log that nobody can fill.
//
//	strangers := guard.Strangers{Limit: 1024}
//	err := guard.Accept(ctx, listener, logger, func(c net.Conn) {
//		stranger := strangers.Enter(c, nil)
//		go func() { defer stranger.Leave(); … }()
//	})
package guard

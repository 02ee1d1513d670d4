package entrypoint

// Limits bounds the connections of a [Router]. Zero fields mean the default,
// negative ones no bound. Where the process may have fewer descriptors than they
// take (RLIMIT_NOFILE), Conns is two fifths of those and Sniffing a sixteenth, and
// the log says so.
type Limits struct {
	// Conns is how many connections are carried at once, by default 20000. A
	// connection takes two file descriptors, and up to four more while much is
	// moved.
	//
	// Nobody may take all of them: a client is refused that has nine times as many
	// as are free. So one gets nine tenths, the next nine tenths of what is left, and
	// who has few is let in when others are not. All clients without an IP address
	// count as one.
	Conns int
	// Sniffing is how many connections of a listener may not have said yet what
	// they want, by default 1024. One more, and the oldest of the network that
	// has most of them is reset. Each takes a few KiB, and a quarter of a MiB if
	// it sends the largest hello there can be.
	Sniffing int
	// PerClient is how many connections one client may have, an IPv4 address or
	// an IPv6 /64; by default there is no bound but the fair share, because an
	// address can be a load balancer that does not say for whom it comes.
	PerClient int
}

const noLimit = 1 << 30

func limit(v, fallback int) int {
	switch {
	case v == 0:
		return fallback
	case v < 0:
		return noLimit
	}
	return v
}

func (l Limits) conns() int     { return limit(l.Conns, 20000) }
func (l Limits) sniffing() int  { return limit(l.Sniffing, 1024) }
func (l Limits) perClient() int { return limit(l.PerClient, noLimit) }

// within lowers what a process with so many descriptors cannot keep: else those run
// out before a limit bites, and nobody is served. 0 descriptors means not known.
func (l Limits) within(descriptors int) (lowered Limits, by bool) {
	if descriptors == 0 {
		return l, false
	}
	lowered = l
	lowered.Conns = min(l.conns(), descriptors*2/5)
	lowered.Sniffing = min(l.sniffing(), descriptors/16)
	return lowered, lowered.Conns < l.conns() || lowered.Sniffing < l.sniffing()
}

package tunnel

// Limits bounds what a [Server] takes, so that nothing grows for ever and no
// cluster takes the others' share. Zero fields mean the default, negative ones
// no bound.
type Limits struct {
	// StreamsPerSession is how many streams one agent's session carries, by
	// default 1024. A dial beyond goes to another agent or fails with
	// connect.ErrLimit.
	StreamsPerSession int
	// Agents is how many agents a cluster may have, by default 64.
	Agents int
	// Streams is how many dials and streams of a cluster may be open, by
	// default 8192.
	Streams int
	// DialsPerSecond is how many dials a cluster may begin, by default 2000,
	// with bursts of as many.
	DialsPerSecond float64
	// ReceiveMemory is how many bytes the buffers for unread data of one
	// session may take before new dials through it are refused, by default
	// 64 MiB. At twice as much the streams that hold most are reset, and at
	// three times the session is ended.
	ReceiveMemory int64
	// ClusterReceiveMemory is the same for all sessions of a cluster
	// together, by default 256 MiB.
	ClusterReceiveMemory int64
	// Handshakes is how many connections at a door may be unauthenticated,
	// that is in the TLS handshake, the request head or HELLO, by default
	// 1024. One more, and the oldest of them is reset.
	Handshakes int
	// Clients is how many client connections of a cluster may be open, by
	// default 16384.
	Clients int
}

func (l Limits) withDefaults() Limits {
	return Limits{
		StreamsPerSession:    unbounded(orDefault(l.StreamsPerSession, 1024)),
		Agents:               unbounded(orDefault(l.Agents, 64)),
		Streams:              unbounded(orDefault(l.Streams, 8192)),
		DialsPerSecond:       orDefault(l.DialsPerSecond, 2000),
		ReceiveMemory:        unbounded(orDefault(l.ReceiveMemory, 64<<20)),
		ClusterReceiveMemory: unbounded(orDefault(l.ClusterReceiveMemory, 256<<20)),
		Handshakes:           unbounded(orDefault(l.Handshakes, 1024)),
		Clients:              unbounded(orDefault(l.Clients, 16384)),
	}
}

// unbounded turns a negative limit into one that is never reached.
func unbounded[T ~int | ~int64](v T) T {
	if v < 0 {
		return 1 << 30
	}
	return v
}

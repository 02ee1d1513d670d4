package pathcontrol

import "time"

// State is what is known of a path.
type State int

const (
	// Unknown: there were neither an answer nor enough misses so far.
	Unknown State = iota
	// Up: it can be used.
	Up
	// Down: it cannot, or has not been clean for long enough since.
	Down
)

// String returns unknown, up or down.
func (s State) String() string {
	switch s {
	case Up:
		return "up"
	case Down:
		return "down"
	}
	return "unknown"
}

// MarshalText returns what String does, for JSON.
func (s State) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// Status is what an operator may want to know of a Controller. It is a copy.
type Status struct {
	// Path is the name of the path that was chosen, empty before the first
	// choice, with the time and the reason.
	Path   string
	Since  time.Time
	Reason string
	// Applied tells whether Use has succeeded for it; UseError is why not, and
	// UseFailures how often it has failed since the choice.
	Applied     bool
	UseError    string
	UseFailures int
	// Switches counts the choices of another path than before; the first is
	// none.
	Switches uint64
	// EventsLost counts the events that OnEvent and the log were too slow for.
	EventsLost uint64
	// Paths are in the order of Controller.Paths.
	Paths []PathStatus
}

// PathStatus is what is known of one path.
type PathStatus struct {
	Name       string
	Preference int
	// State is since when what.
	State State
	Since time.Time
	// RTT is how long answers take, Variation how far they are from that, and
	// Loss the share of probes that were missed, 0 to 1: averages of half a
	// minute, of the worst prober. Score is what they make together, the lower
	// the better; zero before the first answer.
	RTT, Variation time.Duration
	Loss           float64
	Score          time.Duration
	// Misses is how many probes in a row were missed, of the worst prober.
	Misses int
	// LastError says which prober missed an answer last, and why; LastMiss and
	// LastAnswer are when there was a miss and an answer.
	LastError            string
	LastMiss, LastAnswer time.Time
	// Hold is for how long it has to answer every probe to come up the next
	// time, Clean for how long it has done so now.
	Hold, Clean time.Duration
	// Falls counts how often it went down.
	Falls uint64
	// Probers are in the order of Path.Probers.
	Probers []ProberStatus
}

// ProberStatus is what is known of one prober of a path.
type ProberStatus struct {
	Name       string
	RTT        time.Duration
	Loss       float64
	Misses     int
	LastError  string
	Sent, Lost uint64 // probes
	// Hung is how many calls of Probe have not returned although their time
	// is over.
	Hung int
}

package pathcontrol

import "time"

// State is what is known of a path.
type State int

// The states of a path.
const (
	Unknown State = iota // Neither an answer nor enough misses so far.
	Up                   // It can be used.
	Down                 // It cannot, or was not clean for long enough since.
)

// Status is what an operator may want to know of a Controller.
type Status struct {
	// Path is the path that was chosen, empty before the first choice, Since
	// when, and Reason why.
	Path   string
	Since  time.Time
	Reason string
	// Applied tells whether Use has succeeded for it. UseError is why it has not, and
	// UseFailures how often it failed since the choice.
	Applied     bool
	UseError    string
	UseFailures int
	// Switches is how often another path was chosen, the first choice not
	// counted.
	Switches uint64
	// EventsLost counts the events that OnEvent was too slow for.
	EventsLost uint64
	// Paths are in the order of Controller.Paths.
	Paths []PathStatus
}

// PathStatus is what is known of one path.
type PathStatus struct {
	Name       string
	Preference int
	State      State
	Since      time.Time // of State
	// RTT is the smoothed time that answers take and Variation how much they
	// differ from it on average; Loss is the smoothed share of probes that were missed, 0 to 1. Of several
	// probers the worst counts.
	RTT, Variation time.Duration
	Loss           float64
	// Score tells how good the path is: the lower the better, zero before the first answer.
	Score time.Duration
	// Misses is how many probes in a row were missed.
	Misses int
	// LastError is why the last miss was one, LastMiss when; LastAnswer is when the
	// last answer came.
	LastError            string
	LastMiss, LastAnswer time.Time
	// Hold is how long it must answer every probe to come up again, and Clean
	// how long it has done so.
	Hold, Clean time.Duration
	// Falls counts how often it went down.
	Falls   uint64
	Probers []ProberStatus
}

// ProberStatus is what is known of one prober of a path.
type ProberStatus struct {
	Name       string
	RTT        time.Duration
	Loss       float64
	Misses     int
	LastError  string
	Sent, Lost uint64
	// Hung is how many calls of Probe have not returned although their time
	// is over.
	Hung int
}

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

// MarshalText is String, for JSON.
func (s State) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

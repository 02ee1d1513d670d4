//go:build race

package packet

// raceEnabled reports whether the race detector is on, under which pools forget.
func raceEnabled() bool { return true }

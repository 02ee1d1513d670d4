//go:build race

package pathcontrol

// underRace is whether the race detector looks on, which makes all many times
// slower: then fewer histories do, since it is not their number that it needs.
const underRace = true

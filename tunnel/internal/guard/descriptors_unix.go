//go:build unix

package guard

import "golang.org/x/sys/unix"

// Descriptors is how many files and sockets this process may have open, or 0 where
// that is not known. (Package os has raised the soft limit to the hard one.)
func Descriptors() int {
	var l unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &l) != nil || l.Cur > 1<<30 {
		return 0
	}
	return int(l.Cur)
}

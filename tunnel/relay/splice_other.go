//go:build unix && !linux

package relay

// spliceable is false: splice(2) is a system call of linux.
func (d *direction) spliceable() bool { return false }

// splice is not reached.
func (d *direction) splice() (again bool, err error) { return true, nil }

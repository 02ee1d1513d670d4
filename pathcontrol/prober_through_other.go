//go:build !linux

package pathcontrol

import (
	"fmt"
	"runtime"
	"syscall"
)

func (t Through) control(_, _ string, _ syscall.RawConn) error { return t.supported() }

// supported refuses what only linux can do.
func (t Through) supported() error {
	if t.Interface != "" || t.Mark != 0 {
		return fmt.Errorf("pathcontrol: Through.Interface and Through.Mark need linux, this is %s", runtime.GOOS)
	}
	return nil
}

package pathcontrol

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// control sets a socket up before it is connected.
func (t Through) control(_, _ string, c syscall.RawConn) error {
	var err error
	if e := c.Control(func(fd uintptr) { err = t.set(int(fd)) }); e != nil {
		return e
	}
	return err
}

// set does so for a descriptor. Source is not its business.
func (t Through) set(fd int) error {
	if t.Interface != "" {
		if err := unix.BindToDevice(fd, t.Interface); err != nil {
			return fmt.Errorf("bind to interface %s: %w", t.Interface, needs(err, "CAP_NET_RAW"))
		}
	}
	if t.Mark != 0 {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, int(t.Mark)); err != nil {
			return fmt.Errorf("set mark %#x: %w", t.Mark, needs(err, "CAP_NET_ADMIN"))
		}
	}
	return nil
}

// needs adds what the process lacks.
func needs(err error, capability string) error {
	if errors.Is(err, os.ErrPermission) {
		return fmt.Errorf("%w (needs %s)", err, capability)
	}
	return err
}

func (t Through) supported() error { return nil }

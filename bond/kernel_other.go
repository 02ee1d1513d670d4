//go:build !linux

package bond

import (
	"errors"
	"fmt"
	"runtime"
)

// driver needs the netlink of linux.
type driver struct {
	plan   *plan
	kernel rtnetlink
	before []linkState
}

// rtnetlink is what only linux has.
type rtnetlink interface{ mark(n uint32) error }

func openDriver(*plan, func(string) (rtnetlink, error)) (*driver, error) {
	return nil, fmt.Errorf("bond: a bond of the kernel needs linux, this is %s: use Bond: %w", runtime.GOOS, ErrUnsupported)
}

func (d *driver) ensure() (done []string, err error)  { return nil, errors.ErrUnsupported }
func (d *driver) remove() error                       { return errors.ErrUnsupported }
func (d *driver) discard() error                      { return errors.ErrUnsupported }
func (d *driver) setMTU(int) error                    { return errors.ErrUnsupported }
func (d *driver) status(*KernelStatus) error          { return errors.ErrUnsupported }
func (d *driver) everything() ([]linkState, error)    { return nil, errors.ErrUnsupported }
func (d *driver) listen(chan<- news, <-chan struct{}) {}
func (d *driver) unlisten()                           {}
func (d *driver) close()                              {}

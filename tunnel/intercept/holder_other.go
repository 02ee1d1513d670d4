//go:build !linux

package intercept

import (
	"errors"
	"fmt"
	"net/netip"
	"runtime"
)

// holder needs the netlink of linux.
type holder struct {
	addr netip.Addr
	name string
}

func newHolder(netip.Addr, string) (*holder, error) {
	return nil, fmt.Errorf("intercept: an address of our own needs linux, this is %s: %w", runtime.GOOS, errors.ErrUnsupported)
}

func (h *holder) ensure() (done string, err error) { return "", errors.ErrUnsupported }
func (h *holder) remove() error                    { return errors.ErrUnsupported }
func (h *holder) watch(chan<- struct{})            {}
func (h *holder) unwatch()                         {}
func (h *holder) close()                           {}

//go:build !linux

package pathcontrol

import (
	"errors"
	"fmt"
	"runtime"
)

// routeKernel needs the netlink of linux.
type routeKernel struct{ done chan struct{} }

var errNoNetlink = fmt.Errorf("routes need linux, this is %s: %w", runtime.GOOS, errors.ErrUnsupported)

func openRouteKernel(string) (*routeKernel, error) { return nil, errNoNetlink }

func (k *routeKernel) lock(string) (func(), error)                { return nil, errNoNetlink }
func (k *routeKernel) allowed(uint8) error                        { return errNoNetlink }
func (k *routeKernel) routes(uint32, uint8) ([]routeEntry, error) { return nil, errNoNetlink }
func (k *routeKernel) rules() ([]ruleEntry, error)                { return nil, errNoNetlink }
func (k *routeKernel) link(string) (int, error)                   { return 0, errNoNetlink }
func (k *routeKernel) unwatch()                                   {}
func (k *routeKernel) close()                                     {}
func (k *routeKernel) changeRules(_, _ []ruleEntry) (int, error)  { return 0, errNoNetlink }
func (r *NetlinkRouter) watch(*routeKernel, chan<- struct{})      {}
func setMark(uintptr, uint32) error                               { return errNoNetlink }
func (k *routeKernel) change(changes []routeChange) []error {
	errs := make([]error, len(changes))
	for i := range errs {
		errs[i] = errNoNetlink
	}
	return errs
}

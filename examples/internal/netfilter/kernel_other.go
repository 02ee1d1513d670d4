//go:build !linux

package netfilter

import (
	"errors"
	"fmt"
	"net/netip"
	"runtime"
)

// kernel needs the nftables of linux.
type kernel struct{}

type batch struct{}

func openKernel() (*kernel, error) {
	return nil, fmt.Errorf("nftables needs linux, this is %s: %w", runtime.GOOS, errors.ErrUnsupported)
}

func (k *kernel) close()                             {}
func (k *kernel) replace(string, func(*batch)) error { return errors.ErrUnsupported }
func (k *kernel) remove(string) error                { return errors.ErrUnsupported }
func (b *batch) masquerade(string, []netip.Prefix)   {}
func (b *batch) firewall(string)                     {}
func (b *batch) gate(string, []netip.Prefix, bool)   {}

package netfilter

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
)

// Forward makes this host forward packets, which it needs to between a tunnel
// device and networks behind it: it sets net.ipv4.ip_forward if one of the networks
// is IPv4, and net.ipv6.conf.all.forwarding if one is IPv6, in the network namespace
// of the calling thread. What it has set it logs; what is set already it leaves
// alone, so that a process without the right to, in a container where /proc/sys is
// read-only, can run where somebody else has set it. Log may be nil.
//
// Nothing is set back at the end: by then others may count on it, and a host that
// forwards nothing for want of a tunnel does no harm.
//
// A host that forwards IPv6 is a router and ignores the advertisements of routers,
// and so loses the default route that it has from them. So interfaces that listen to
// them (accept_ra is 1) are told to go on (2) first, those to come included.
func Forward(networks []netip.Prefix, log *slog.Logger) error {
	if runtime.GOOS != "linux" {
		return fmt.Errorf("netfilter: forwarding needs linux, this is %s: %w", runtime.GOOS, errors.ErrUnsupported)
	}
	return forward("/proc/sys/net", networks, orSilent(log))
}

// forward is Forward on a tree of variables.
func forward(root string, networks []netip.Prefix, log *slog.Logger) error {
	has := func(v6 bool) bool {
		return slices.ContainsFunc(networks, func(n netip.Prefix) bool { return n.Addr().Is6() == v6 })
	}
	if has(false) {
		if err := sysctl(root, "ipv4/ip_forward", "1", log); err != nil {
			return err
		}
	}
	if !has(true) {
		return nil
	}
	const all = "ipv6/conf/all/forwarding"
	value, err := readSysctl(root, all)
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("netfilter: this host has no IPv6, and one of the networks is IPv6: %w", err)
	}
	if err != nil {
		return fmt.Errorf("netfilter: %w", err)
	}
	if value != "0" {
		return nil
	}
	listening, err := filepath.Glob(filepath.Join(root, "ipv6/conf/*/accept_ra"))
	if err != nil {
		return fmt.Errorf("netfilter: %w", err)
	}
	for _, file := range listening {
		name, _ := filepath.Rel(root, file)
		if value, err := readSysctl(root, name); err != nil || value != "1" {
			continue // an interface that has gone, or one that does not listen
		}
		if err := sysctl(root, name, "2", log); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return sysctl(root, all, "1", log)
}

func readSysctl(root, name string) (string, error) {
	value, err := os.ReadFile(filepath.Join(root, name))
	return strings.TrimSpace(string(value)), err
}

// sysctl sets a value that is another now.
func sysctl(root, name, want string, log *slog.Logger) error {
	dotted := "net." + strings.ReplaceAll(name, "/", ".")
	before, err := readSysctl(root, name)
	if err != nil {
		return fmt.Errorf("netfilter: sysctl %s: %w", dotted, err)
	}
	if before == want {
		return nil
	}
	err = os.WriteFile(filepath.Join(root, name), []byte(want), 0)
	switch {
	case errors.Is(err, syscall.EROFS), errors.Is(err, os.ErrPermission):
		return fmt.Errorf("netfilter: sysctl %s=%s is needed and cannot be set here: set it where the container is started "+
			"(for a pod, securityContext.sysctls), or run this as root with a writable /proc/sys: %w", dotted, want, err)
	case err != nil:
		return fmt.Errorf("netfilter: sysctl %s=%s: %w", dotted, want, err)
	}
	log.Info("sysctl set, and left so at the end", "name", dotted, "value", want, "before", before)
	return nil
}

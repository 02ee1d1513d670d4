package netfilter

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// kernel is the nftables of one network namespace.
type kernel struct{ conn *nftables.Conn }

// openKernel opens that of this thread.
func openKernel() (*kernel, error) {
	conn, err := nftables.New(nftables.AsLasting())
	if err != nil {
		return nil, lacks("nftables (CONFIG_NF_TABLES)", remedyMasquerade+", or "+remedyFirewall, reason(err))
	}
	return &kernel{conn}, nil
}

func (k *kernel) close() { _ = k.conn.CloseLasting() }

// replace makes the table anew, in one transaction.
func (k *kernel) replace(name string, rules func(*batch)) error {
	t := &nftables.Table{Family: nftables.TableFamilyINet, Name: name}
	k.conn.AddTable(t) // so that there is one to delete
	k.conn.DelTable(t)
	k.conn.AddTable(t)
	b := &batch{conn: k.conn, table: t}
	rules(b)
	err := k.conn.Flush()
	if b.err != nil {
		return b.err
	}
	if err != nil {
		return k.explain(err, b)
	}
	return nil
}

// remove deletes the table.
func (k *kernel) remove(name string) error {
	k.conn.DelTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: name})
	if err := k.conn.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
		return k.explain(err, new(batch))
	}
	return nil
}

// A need is something that the kernel must have, and what proves it.
type need struct {
	what, option string
	try          func(*batch)
}

// explain finds out what the kernel lacks, by trying each need alone in a table
// that is made and deleted in one transaction.
func (k *kernel) explain(refused error, b *batch) error {
	if errors.Is(refused, os.ErrPermission) {
		return fmt.Errorf("this needs CAP_NET_ADMIN in the network namespace: run it as root, or give it the capability: %w", reason(refused))
	}
	for _, n := range append([]need{needInet}, b.needs...) {
		t := &nftables.Table{Family: nftables.TableFamilyINet, Name: "rhizome-try"}
		k.conn.AddTable(t)
		n.try(&batch{conn: k.conn, table: t})
		k.conn.DelTable(t)
		if err := k.conn.Flush(); err != nil {
			return lacks(fmt.Sprintf("%s (%s)", n.what, n.option), b.remedy, reason(err))
		}
	}
	return reason(refused)
}

// lacks is the error for a kernel that cannot do it.
func lacks(what, remedy string, why error) error {
	return fmt.Errorf("the running kernel, Linux %s, lacks %s: %s: %w: %w", release(), what, remedy, errors.ErrUnsupported, why)
}

// reason is the kernel's number in an error that repeats it for each request of a
// transaction.
func reason(err error) error {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return errno
	}
	return err
}

// release is the version of the running kernel.
func release() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return "?"
	}
	text, _, _ := strings.Cut(string(u.Release[:]), "\x00")
	return text
}

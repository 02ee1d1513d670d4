package tunneltest

import (
	"errors"
	"runtime"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// InNetns runs f in a new, empty network namespace whose loopback is up. It needs
// linux and CAP_SYS_ADMIN, as root or in a user namespace, and skips the test with
// the remedy where it has not.
//
// A network namespace belongs to an OS thread. f runs locked to one, and only what
// its own goroutine does happens in the namespace: a goroutine that f starts runs on
// other threads, outside. Sockets stay in the namespace that made them, so f listens,
// dials and opens devices itself (by IP address; net.Dial of a name uses
// goroutines), and may use what it got anywhere. Calls may be nested: several hosts
// are several namespaces with a veth between them. The namespace goes away with the
// last socket and thread in it.
func InNetns(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	runtime.LockOSThread()
	home, err := netns.Get()
	if err != nil {
		runtime.UnlockOSThread()
		t.Fatalf("the network namespace of this thread: %v", err)
	}
	defer home.Close()
	own, err := netns.New() // enters it
	if err != nil {
		runtime.UnlockOSThread()
		if errors.Is(err, syscall.EPERM) {
			t.Skip("a network namespace needs CAP_SYS_ADMIN: run the test as root, or as: unshare --user --map-root-user --net go test")
		}
		t.Fatalf("a new network namespace: %v", err)
	}
	defer func() {
		own.Close()
		// A thread that cannot go home must not serve other goroutines: it stays
		// locked, and the runtime ends it together with this goroutine.
		if err := netns.Set(home); err != nil {
			t.Errorf("back to the network namespace of before: %v", err)
			return
		}
		runtime.UnlockOSThread()
	}()
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		t.Fatalf("the loopback of a new network namespace: %v", err)
	}
	f(t)
}

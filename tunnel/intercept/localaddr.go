package intercept

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/internal/guard"
)

// DefaultInterface is the name of the dummy interface that a [LocalAddr] makes.
const DefaultInterface = "rhizome-api"

// A LocalAddr makes an address one of this host's own, as long as it runs, so
// that programs can listen on it and what this host forwards to it ends here.
// Only Addr must be set. It needs linux and CAP_NET_ADMIN in the network
// namespace.
//
//	Up ──► there ──Run──► kept there ──ctx ends──► removed
//	         └──────────────Close──────────────────────┘
//
// The fields must not be changed after the first use.
type LocalAddr struct {
	// Addr is the address, IPv4 or IPv6, which gets a /32 or /128. It must not
	// be anybody else's in the networks around. Addresses that every host has
	// (loopback, IPv6 link-local) or nobody (unspecified, multicast) are
	// refused.
	Addr netip.Addr
	// Interface names an existing interface that is to have the address. It
	// must be up, and but for the address nothing about it is changed. Empty
	// means a dummy interface of our own, [DefaultInterface], which is made,
	// and deleted with its last address.
	Interface string
	// CheckInterval is how often Run looks whether all is as it should be, by
	// default 10 s. It also looks whenever the kernel tells of a change, so
	// that a removed address is back within 0.1 s; negative means only then.
	CheckInterval time.Duration
	// Logger gets a line when the address comes, goes, or had to be put back.
	// Nil means silent.
	Logger *slog.Logger

	mu     sync.Mutex
	holder *holder // nil unless up
	err    error   // of the last look
	limit  guard.LogLimit
}

const (
	defaultCheckInterval = 10 * time.Second
	// lookPause is the least time between two looks, so that a fight with another
	// program about the address costs little.
	lookPause = 100 * time.Millisecond
)

// An InUseError is the refusal to take an address, or an interface, from
// somebody else.
type InUseError struct {
	// Addr is the address that was wanted.
	Addr netip.Addr
	// Interface is the one that has the address, or that is wanted and not
	// ours. It is empty if another process holds the address.
	Interface string
	// Problem says who has what, Remedy what a person can do.
	Problem, Remedy string
}

// Error tells the problem and the remedy in one line.
func (e *InUseError) Error() string { return "intercept: " + e.Problem + ": " + e.Remedy }

// ErrNoDummy is what errors.Is finds if a dummy interface is wanted and this
// kernel has no driver for it.
var ErrNoDummy = errors.New("this kernel has no dummy interfaces")

var errNotUp = errors.New("intercept: the address is not up yet, or not any more")

// Up puts the address there and returns when sockets can be bound to it. It
// starts nothing: Run keeps the address, or Close removes it. A second call
// does nothing.
//
// The network namespace is that of the calling thread, and stays it for Run and
// Close, wherever they run.
//
// What a killed process has left is taken over: the own interface is known by
// its alias, and an address on a given interface by looks that no other has: a
// /32 of scope host, or a /128 that is deprecated, permanent and not checked for
// duplicates. If the address is anywhere else, the error is an [*InUseError]. So
// it is if another process holds the address, which is known by an abstract Unix
// socket, @rhizome-intercept/ADDR, that ends with its process.
//
// Such a socket has no owner and no permissions: any process of the network
// namespace, on a node that is also one of a pod with hostNetwork, can bind it
// first, and Up fails as long as it lives. The error names the socket and how to
// find who has it.
func (a *LocalAddr) Up() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.holder != nil {
		return nil
	}
	addr := a.Addr.Unmap()
	if err := checkAddr(addr); err != nil {
		return err
	}
	h, err := newHolder(addr, a.Interface)
	if err != nil {
		return err
	}
	done, err := h.ensure()
	if err != nil {
		h.close()
		return err
	}
	a.holder, a.err = h, nil
	a.logger().Info("address up", "address", addr.String(), "interface", h.name, "done", done)
	return nil
}

// checkAddr reports why addr cannot belong to one host.
func checkAddr(addr netip.Addr) error {
	what := ""
	switch {
	case !addr.IsValid():
		return errors.New("intercept: LocalAddr without an address")
	case addr.Zone() != "":
		what = "with a zone"
	case addr.IsUnspecified():
		what = "unspecified"
	case addr.IsLoopback():
		what = "a loopback address"
	case addr.IsMulticast(), addr == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		what = "for many hosts"
	case addr.Is6() && addr.IsLinkLocalUnicast():
		what = "an IPv6 link-local address"
	default:
		return nil
	}
	return fmt.Errorf("intercept: cannot own %v, which is %s", addr, what)
}

// Run keeps the address there, after Up if nobody has called it, and removes it
// when ctx ends. What others have removed or changed it puts back: the address,
// the own interface, and its state. While it cannot, because a given interface
// is gone or the address is on another interface by now, it logs that and tries
// again.
//
// It returns the error of Up, or of the removal, or otherwise ctx's cause.
func (a *LocalAddr) Run(ctx context.Context) error {
	if err := a.Up(); err != nil {
		return err
	}
	a.mu.Lock()
	h := a.holder
	a.mu.Unlock()
	if h == nil {
		return errNotUp // by a Close in between
	}
	var work sync.WaitGroup
	changes := make(chan struct{}, 1)
	work.Go(func() { h.watch(changes) })
	a.keep(ctx, changes)
	h.unwatch()
	work.Wait()
	if err := a.Close(); err != nil {
		return err
	}
	return context.Cause(ctx)
}

// keep looks after the address until ctx ends.
func (a *LocalAddr) keep(ctx context.Context, changes <-chan struct{}) {
	interval := a.CheckInterval
	if interval == 0 {
		interval = defaultCheckInterval
	}
	var ticks <-chan time.Time
	if interval > 0 {
		ticker := time.NewTicker(interval)
		defer ticker.Stop()
		ticks = ticker.C
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-changes:
		case <-ticks:
		}
		a.look()
		select {
		case <-ctx.Done():
			return
		case <-time.After(lookPause):
		}
	}
}

// look puts right what is wrong.
func (a *LocalAddr) look() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.holder == nil {
		return
	}
	done, err := a.holder.ensure()
	a.err = err
	log := a.limit.Logger(a.logger()).With("address", a.holder.addr.String(), "interface", a.holder.name)
	switch {
	case err != nil:
		log.Error("address cannot be kept", "error", err)
	case done != "":
		log.Warn("address put back", "done", done)
	}
}

// Ready returns nil if the address was there at the last look, else why not.
func (a *LocalAddr) Ready() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.holder == nil {
		return errNotUp
	}
	return a.err
}

// Close removes the address, and the interface if it is our own and has no
// other address. It is for who has called Up and not Run, which does the same at
// its end. A second call does nothing.
func (a *LocalAddr) Close() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	h := a.holder
	if h == nil {
		return nil
	}
	a.holder, a.err = nil, nil
	err := h.remove()
	h.close()
	if err != nil {
		a.logger().Error("address cannot be removed", "address", h.addr.String(), "interface", h.name, "error", err)
		return err
	}
	a.logger().Info("address removed", "address", h.addr.String(), "interface", h.name)
	return nil
}

func (a *LocalAddr) logger() *slog.Logger { return orSilent(a.Logger) }

func orSilent(log *slog.Logger) *slog.Logger {
	if log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return log
}

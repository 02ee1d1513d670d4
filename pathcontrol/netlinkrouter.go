package pathcontrol

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"
)

// What a [NetlinkRouter] takes where its fields are zero.
const (
	// DefaultRouteTable is the kernel's main table.
	DefaultRouteTable = 254
	// DefaultRouteMetric is not 0, which IPv6 turns into 1024, and below what
	// the kernel (256) and network managers (100 and more) take.
	DefaultRouteMetric = 50
	// DefaultRouteProtocol is none of those that rtnetlink.h or iproute2's
	// rt_protos give to anybody.
	DefaultRouteProtocol = 215
	// DefaultProbeMark has no bit that kube-proxy (0x4000, 0x8000), Calico
	// (0xffff0000) or Cilium (0xffff0f00) gives a meaning to.
	DefaultProbeMark = 0xd0
	// DefaultProbeTable is the table of the first path.
	DefaultProbeTable = 21500
	// DefaultRulePriority is ahead of the rule for the main table, 32766.
	DefaultRulePriority = 215
)

// maxHops is how many paths a router can have, and how many tables and marks
// belong to it when they are taken at all.
const maxHops = 48

// ErrConflict is what errors.Is finds when a route is wanted where somebody else
// has one: same table, same destination, same metric. Such a route is never
// replaced; the error names it.
var ErrConflict = errors.New("a route of somebody else is in the way")

// A NextHop is where the packets for the networks go on one path. Via or
// Interface must be set.
type NextHop struct {
	// Via is the next router's address. It may be an IPv6 address for IPv4
	// networks also; an IPv4 address can be a next hop for IPv4 only. Not set,
	// all of the networks are on the link itself, which Interface then names:
	// right for a TUN device.
	Via netip.Addr
	// Interface names the link. Empty, the kernel takes the one on which Via is
	// a neighbour when the route is made; an IPv6 link-local Via needs it.
	Interface string
	// Source is the address that this host's own packets get on the path, one of
	// its own addresses. It counts for the networks of its own family; for the
	// others, and for all if it is not set, the kernel chooses.
	Source netip.Addr
	// OnLink says that Via is a neighbour on Interface, whatever addresses and
	// routes are there.
	OnLink bool
}

// A NetlinkRouter leads many networks to one of several next hops and moves them
// to another in one go. Its Use fits a [Controller]. Only Networks and Hops must
// be set. It needs linux and CAP_NET_ADMIN in the network namespace.
//
//	Up ──► ready ──Use──► routes by one path ──Use──► by another
//	         └────────────────┬──────────────────────────┘
//	                        Close (Run, when its ctx ends) ──► all removed
//
// # In one go
//
// The kernel replaces each route atomically: at no moment is a network without
// one. It has no request that replaces several, so all of them are in one message,
// which the kernel works through without the process being asked again: 1,000
// networks, half of them IPv6, take about 5 ms of a CPU, in which some go the new way
// already and others still the old. When the kernel refuses one, those that have
// been moved are moved back, and Use says so.
//
// Use looks at the table first, and changes nothing at all where somebody else's
// route has the place of one of ours. Where a place is free the kernel itself sees to
// it that nobody's route is replaced. Where it is ours, a route that somebody else
// puts there in the milliseconds between the look and the change is not seen.
//
// # What is ours
//
// A route belongs to the router if it has its Protocol, Table and Metric. Whatever
// has these is replaced and removed, nothing else is. So a process that was killed
// leaves routes behind which the next one knows: Up removes those for other
// networks, and keeps those for Networks until the first Use moves them, so that a
// restart interrupts nothing. Two routers of one network namespace must differ in
// one of the three; Up refuses a second one by means of an abstract Unix socket,
// @rhizome-pathcontrol/PROTOCOL/TABLE/METRIC, which ends with its process. With
// PerPath they must differ in ProbeTable and ProbeMark, too.
//
// # Probing one path
//
// With PerPath each path has, beside the table that all use, one of its own, and a
// rule that leads sockets with the path's mark there. So a prober can reach what is
// behind any path, also one that is not in use:
//
//	d := net.Dialer{Control: r.Control("b")}
//	probe := &pathcontrol.TCP{Addr: "10.96.0.1:443", Dial: d.DialContext}
//
// What is not in Networks such a socket reaches as any other does. When the path's
// interface is gone, Networks are unreachable for it instead of reached by another
// path. Where the interfaces of the paths differ and net.ipv4.conf.*.rp_filter is
// 1, the kernel drops answers that come by the path not in use: set it to 2.
//
// # What it does not do
//
// It adds no addresses, sets up no interfaces and asks nobody else's routes to
// leave: one with a lower metric, or a more specific one, wins over ours.
//
// The fields must not be changed after the first use. The methods may be called
// by several goroutines at once.
type NetlinkRouter struct {
	// Networks are the destinations, in any number. They may overlap, since all
	// have the same way; one that is named twice counts once. A prefix with host
	// bits, 10.1.2.3/16, is refused.
	Networks []netip.Prefix
	// Hops are the paths by their names, at most 48.
	Hops map[string]NextHop
	// Table is the routing table; 0 is the main table, 254. The kernel's own
	// table of local addresses, 255, is refused.
	Table int
	// Metric is the priority of the routes, low wins; 0 means 50.
	Metric int
	// Protocol is the number that marks routes as ours, at most 255; 0 means
	// 215. The kernel's and the administrator's, up to 4, are refused.
	Protocol int
	// AllowDefault allows 0.0.0.0/0 and ::/0 in Networks, which else are
	// refused: they take the way to everything, the tunnel's own links included.
	AllowDefault bool
	// PerPath makes a table and a rule for each path, see Mark and Control.
	PerPath bool
	// ProbeMark is the mark of the path whose name sorts first, ProbeTable its
	// table; the next path has the next number. The 48 numbers from each belong
	// to this router. 0 means 0xd0 and 21500.
	ProbeMark, ProbeTable int
	// RulePriority is the priority of the rules; 0 means 215.
	RulePriority int
	// CheckInterval is how often Run looks whether all is as it should be, by
	// default 30 s. It also looks when the kernel tells of a change, which is
	// what puts routes back at once; negative means only then.
	CheckInterval time.Duration
	// Logger gets a line when routes move, and when they had to be put back. Nil
	// means silent.
	Logger *slog.Logger

	mu       sync.Mutex
	kernel   *routeKernel // nil unless up
	path     string       // that Use has chosen, or Up has found
	probes   bool         // the tables and rules of single paths are ours
	status   RouterStatus
	lately   logGate
	shadowed []netip.Prefix
}

// A RouterStatus says how a [NetlinkRouter] is.
type RouterStatus struct {
	// Path is the one in use, empty before the first Use, unless Up has found
	// all routes of one path there, left by a predecessor.
	Path string
	// Routes is how many networks go that way, as of the last look.
	Routes int
	// Err is why fewer do than should, nil if all do.
	Err error
	// ProbeErr is why a path cannot be probed on its own, nil if all can.
	ProbeErr error
	// Moved counts the changes of path, Reasserted how often something had to be
	// put back.
	Moved, Reasserted uint64
	// Lost counts how often the kernel had to drop news of changes, because too
	// many came at once. Each is followed by a look at everything.
	Lost uint64
}

var errRouterDown = errors.New("pathcontrol: the router is not up yet, or not any more")

// Up opens what the router needs, removes what a killed predecessor has left for
// other networks, and with PerPath makes the tables and rules. It starts nothing. A
// second call does nothing.
//
// The network namespace is that of the calling thread, and stays it for all other
// methods, wherever they run.
func (r *NetlinkRouter) Up() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.up()
}

func (r *NetlinkRouter) up() error {
	if r.kernel != nil {
		return nil
	}
	if err := r.Check(); err != nil {
		return err
	}
	k, err := openRouteKernel(r.lock())
	if err != nil {
		return fmt.Errorf("pathcontrol: %w", err)
	}
	r.path, r.probes, r.status = "", false, RouterStatus{}
	removed, err := r.start(k)
	if err != nil {
		k.close()
		return fmt.Errorf("pathcontrol: %w", err)
	}
	r.kernel = k
	if r.path != "" {
		r.status.Path, r.status.Routes = r.path, len(r.wanted(r.path))
	}
	if removed > 0 || r.path != "" {
		r.logger().Warn("a predecessor has left routes", "removed", removed, "kept on path", r.path)
	}
	return nil
}

// Sweep removes the routes that killed routers have left, of this Protocol in this
// Table, whatever their Metric. Routers that run keep theirs, this one included: it
// is for a program to call once all its routers are up, when it may have had more of
// them before, or with other metrics. It needs no other field, nor Up.
func (r *NetlinkRouter) Sweep() error {
	k, err := openRouteKernel("")
	if err != nil {
		return fmt.Errorf("pathcontrol: %w", err)
	}
	defer k.close()
	if err := r.sweep(k); err != nil {
		return fmt.Errorf("pathcontrol: %w", err)
	}
	return nil
}

// Use leads all networks by the path, or by none if path is empty: then the routes
// are removed. It calls Up if nobody has. What it does is described at the type; an
// error says by which way the networks go now. It does not wait for anything, so
// ctx is only looked at before.
func (r *NetlinkRouter) Use(ctx context.Context, path string) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.up(); err != nil {
		return err
	}
	before, start := r.path, time.Now()
	changed, err := r.move(r.kernel, path)
	if err != nil {
		r.logger().Error("routes not moved", "path", path, "in use", before, "error", err)
		return fmt.Errorf("pathcontrol: path %q: %w", path, err)
	}
	r.path, r.status.Path = path, path
	r.status.Routes, r.status.Err = len(r.wanted(path)), nil
	if path != before {
		r.status.Moved++
	}
	if changed > 0 {
		r.logger().Info("routes moved", "from", before, "to", path, "changed", changed, "took", time.Since(start))
	}
	return nil
}

// Run keeps the routes, after Up if nobody has called it, and removes them when
// ctx ends. It puts back what others have removed or changed, at once when the
// kernel tells of it, also after the interface was down or gone, but at most 20 times a
// second. It does not take a place that somebody else has taken; it takes it again when
// it is free. It runs once at a time.
//
// It returns the error of Up, or of the removal, or net.ErrClosed after Close, or
// otherwise ctx's cause.
func (r *NetlinkRouter) Run(ctx context.Context) error {
	if err := r.Up(); err != nil {
		return err
	}
	r.mu.Lock()
	k := r.kernel
	r.mu.Unlock()
	if k == nil {
		return errRouterDown // by a Close in between
	}
	news := make(chan struct{}, 1)
	var work sync.WaitGroup
	work.Go(func() { r.watch(k, news) })
	err := r.keep(ctx, k, news)
	k.unwatch()
	work.Wait()
	if err != nil {
		return err
	}
	if err := r.Close(); err != nil {
		return err
	}
	return context.Cause(ctx)
}

const (
	defaultRouteCheck = 30 * time.Second
	// routePause is the least time between two looks, so that a fight with
	// another program about a route costs little.
	routePause = 50 * time.Millisecond
	// routeRetry is when the next look comes where one has failed.
	routeRetry = time.Second
)

// keep looks after the routes until ctx ends, or until Close, which is an error.
func (r *NetlinkRouter) keep(ctx context.Context, k *routeKernel, news <-chan struct{}) error {
	interval := r.CheckInterval
	if interval == 0 {
		interval = defaultRouteCheck
	}
	timer := time.NewTimer(0) // the first look is now
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			select {
			case <-k.done: // Close came first
				return net.ErrClosed
			default:
				return nil
			}
		case <-k.done:
			return net.ErrClosed
		case <-news:
		case <-timer.C:
		}
		if err := r.look(k); err != nil {
			timer.Reset(routeRetry)
		} else if interval > 0 {
			timer.Reset(interval)
		}
		pause := time.NewTimer(routePause)
		select {
		case <-ctx.Done():
		case <-pause.C:
		}
		pause.Stop()
	}
}

// look puts right what is wrong.
func (r *NetlinkRouter) look(k *routeKernel) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.kernel != k {
		return nil
	}
	done, missing, err := r.assert(k)
	r.status.Err = err
	r.status.Routes = len(r.wanted(r.path)) - missing
	if done > 0 {
		r.status.Reasserted++
	}
	if err = errors.Join(err, r.status.ProbeErr); err == nil && done == 0 {
		return nil
	}
	if held, ok := r.lately.pass(err); ok {
		log := r.logger().With("path", r.path, "put back", done, "lines held back", held)
		if err != nil {
			log.Error("routes cannot be kept", "missing", missing, "error", err)
		} else {
			log.Warn("routes put back")
		}
	}
	return err
}

// Status says how the router is.
func (r *NetlinkRouter) Status() RouterStatus {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.status
}

// Close removes the routes, rules and tables, and ends Run, which does the same
// when its ctx ends. The networks are then reached by whatever other route there is,
// such as the default one. A second call does nothing; Up begins anew.
func (r *NetlinkRouter) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	k := r.kernel
	if k == nil {
		return nil
	}
	err := r.clear(k)
	r.kernel, r.path, r.status = nil, "", RouterStatus{}
	k.close()
	if err != nil {
		r.logger().Error("routes cannot be removed", "error", err)
		return fmt.Errorf("pathcontrol: %w", err)
	}
	r.logger().Info("routes removed")
	return nil
}

func (r *NetlinkRouter) logger() *slog.Logger {
	if r.Logger == nil {
		return slog.New(slog.DiscardHandler)
	}
	return r.Logger
}

// A logGate lets a line pass that says something else than the one before, and
// the same one again after a second, or a minute if it is an error.
type logGate struct {
	text string
	last time.Time
	held int
}

// pass reports whether a line about err may be written, and how many were held
// back before it.
func (g *logGate) pass(err error) (held int, ok bool) {
	again := time.Second
	if err != nil {
		again = time.Minute
	}
	text := fmt.Sprint(err)
	if text == g.text && time.Since(g.last) < again {
		g.held++
		return 0, false
	}
	held, g.text, g.last, g.held = g.held, text, time.Now(), 0
	return held, true
}

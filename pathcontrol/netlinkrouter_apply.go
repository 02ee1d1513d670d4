package pathcontrol

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// start takes over what a predecessor has left, and makes the tables and rules of
// PerPath. It returns how much it removed.
func (r *NetlinkRouter) start(k *routeKernel) (removed int, err error) {
	if err := k.allowed(r.protocol()); err != nil {
		return 0, err
	}
	unlock, err := r.lockProbes(k)
	if err != nil {
		return 0, err
	}
	defer unlock()
	left, err := k.routes(0, r.protocol())
	if err != nil {
		return 0, err
	}
	networks := r.networks()
	left = slices.DeleteFunc(left, func(e routeEntry) bool {
		switch {
		case !r.owns(e):
			return true
		case r.isProbeTable(e.table):
			return !r.probes || r.PerPath && int(e.table) < r.probeTable(len(r.Hops)) // assertProbes looks after these
		}
		return slices.Contains(networks, e.to)
	})
	removed, err = r.apply(k, routePlan{removals: appendRemovals(nil, left)})
	if err != nil {
		return removed, err
	}
	if r.PerPath {
		if _, err := r.assertProbes(k, true); err != nil {
			return removed, errors.Join(err, r.clearProbes(k))
		}
	}
	if r.probes {
		changed, err := r.assertRules(k)
		if err != nil {
			return removed, errors.Join(err, r.clearProbes(k))
		}
		if !r.PerPath { // else rules were made
			removed += changed
		}
	}
	r.path, err = r.found(k)
	return removed, err
}

// lockProbes sets probes, which says that the tables and rules of single paths are
// ours: with PerPath that is a must, and without it for a moment if nobody else
// has them, so that leftovers of a predecessor with PerPath can be removed.
func (r *NetlinkRouter) lockProbes(k *routeKernel) (unlock func(), err error) {
	release, err := k.lock(r.probeLock())
	r.probes = err == nil
	switch {
	case r.PerPath:
		return func() {}, err
	case err != nil:
		return func() {}, nil
	}
	return func() {
		release()
		r.probes = false
	}, nil
}

// found returns the path that the routes go by already, if all go by one.
func (r *NetlinkRouter) found(k *routeKernel) (string, error) {
	have, err := k.routes(r.table(), r.protocol())
	if err != nil {
		return "", err
	}
	for _, path := range r.names() {
		want, err := r.resolve(k, r.wanted(path))
		if err != nil {
			continue
		}
		if p := planRoutes(want, have, r.owns); len(p.missing)+len(p.removals) == 0 {
			return path, nil
		}
	}
	return "", nil
}

// move makes the routes those of a path, or leaves them as they are.
func (r *NetlinkRouter) move(k *routeKernel, path string) (changed int, err error) {
	if _, ok := r.Hops[path]; !ok && path != "" {
		return 0, r.unknown(path)
	}
	want, err := r.resolve(k, r.wanted(path))
	if err != nil {
		return 0, err
	}
	before, err := k.routes(r.table(), 0)
	if err != nil {
		return 0, err
	}
	plan := planRoutes(want, before, r.owns)
	if len(plan.conflicts) > 0 {
		return 0, conflict(plan.conflicts)
	}
	changed, err = r.apply(k, plan)
	if err == nil {
		r.noteShadows(plan.shadows)
		return changed, nil
	}
	// Whatever of it was done, or may have been, is taken back.
	mine := slices.DeleteFunc(before, func(e routeEntry) bool { return !r.owns(e) })
	now, again := k.routes(r.table(), 0)
	if again == nil {
		_, again = r.apply(k, planRoutes(mine, now, r.owns))
	}
	if again != nil {
		return 0, fmt.Errorf("%w; and not all could be moved back: %w", err, again)
	}
	return 0, fmt.Errorf("%w; all is as before", err)
}

// assert puts right what is wrong, as far as it can, and says how much it did and
// how many networks are left without the route that they should have.
func (r *NetlinkRouter) assert(k *routeKernel) (done, missing int, err error) {
	r.status.ProbeErr = nil
	if r.PerPath {
		n, probeErr := r.assertProbes(k, false)
		gone, rulesErr := r.assertRules(k)
		done, r.status.ProbeErr = done+n+gone, errors.Join(probeErr, rulesErr)
	}
	if r.path == "" {
		return done, 0, nil
	}
	wanted := r.wanted(r.path)
	want, err := r.resolve(k, wanted)
	if err != nil {
		return done, len(wanted), err
	}
	have, err := k.routes(r.table(), 0)
	if err != nil {
		return done, len(wanted), err
	}
	plan := planRoutes(want, have, r.owns)
	n, err := r.apply(k, plan)
	done += n
	if len(plan.conflicts) > 0 {
		err = errors.Join(conflict(plan.conflicts), err)
	}
	r.noteShadows(plan.shadows)
	if err == nil {
		return done, 0, nil
	}
	if have, again := k.routes(r.table(), 0); again == nil {
		missing = len(planRoutes(want, have, r.owns).missing)
	}
	return done, missing, err
}

// assertProbes makes the tables of single paths as they should be. A path whose
// next hop cannot be used now has no routes in its table but those that lead
// nowhere; with tolerant that is no error.
func (r *NetlinkRouter) assertProbes(k *routeKernel, tolerant bool) (done int, err error) {
	var errs []error
	for i, name := range r.names() {
		n, err := r.assertProbe(k, r.Hops[name], uint32(r.probeTable(i)), tolerant)
		done += n
		if err != nil {
			errs = append(errs, fmt.Errorf("probing path %q alone: %w", name, err))
		}
	}
	return done, errors.Join(errs...)
}

func (r *NetlinkRouter) assertProbe(k *routeKernel, hop NextHop, table uint32, tolerant bool) (done int, err error) {
	have, err := k.routes(table, 0)
	if err != nil {
		return 0, err
	}
	if foreign := slices.DeleteFunc(slices.Clone(have), r.owns); len(foreign) > 0 {
		return 0, fmt.Errorf("table %d has to be for it alone: %w", table, conflict(foreign))
	}
	dead := r.dead(table)
	want, unresolved := r.resolve(k, r.through(hop, table))
	done, err = r.apply(k, planRoutes(append(want, dead...), have, r.owns))
	if err = errors.Join(unresolved, err); err == nil || !tolerant {
		return done, err
	}
	if have, again := k.routes(table, 0); again == nil && len(planRoutes(dead, have, r.owns).missing) == 0 {
		return done, nil
	}
	return done, err
}

// assertRules makes the rules as they should be.
func (r *NetlinkRouter) assertRules(k *routeKernel) (done int, err error) {
	have, err := k.rules()
	if err != nil {
		return 0, err
	}
	add, remove := planRules(r.rules(), have, r.ownsRule)
	return k.changeRules(add, remove)
}

// clear removes everything that is ours.
func (r *NetlinkRouter) clear(k *routeKernel) error {
	err := r.clearProbes(k)
	have, again := k.routes(0, r.protocol())
	if again != nil {
		return errors.Join(err, again)
	}
	have = slices.DeleteFunc(have, func(e routeEntry) bool { return !r.owns(e) || r.isProbeTable(e.table) })
	_, again = r.apply(k, routePlan{removals: appendRemovals(nil, have)})
	return errors.Join(err, again)
}

// sweep removes routes of metrics of which nobody has the lock.
func (r *NetlinkRouter) sweep(k *routeKernel) error {
	have, err := k.routes(r.table(), r.protocol())
	if err != nil {
		return err
	}
	left := make(map[uint32][]routeEntry)
	for _, e := range have {
		left[e.metric] = append(left[e.metric], e)
	}
	var errs []error
	for metric, routes := range left {
		unlock, err := k.lock((&NetlinkRouter{Protocol: r.Protocol, Table: r.Table, Metric: int(metric)}).lock())
		if err != nil {
			continue // a router that runs has it
		}
		removed, err := r.apply(k, routePlan{removals: appendRemovals(nil, routes)})
		unlock()
		errs = append(errs, err)
		r.logger().Warn("a predecessor has left routes", "removed", removed, "metric", metric)
	}
	return errors.Join(errs...)
}

// clearProbes removes the rules and tables of single paths, if they are ours.
func (r *NetlinkRouter) clearProbes(k *routeKernel) error {
	if !r.probes {
		return nil
	}
	rules, err := k.rules()
	if err == nil {
		_, remove := planRules(nil, rules, r.ownsRule)
		_, err = k.changeRules(nil, remove)
	}
	have, again := k.routes(0, r.protocol())
	if again != nil {
		return errors.Join(err, again)
	}
	have = slices.DeleteFunc(have, func(e routeEntry) bool { return !r.isProbeTable(e.table) })
	_, again = r.apply(k, routePlan{removals: appendRemovals(nil, have)})
	return errors.Join(err, again)
}

// resolve finds the interfaces of routes, which all have the same next hop.
func (r *NetlinkRouter) resolve(k *routeKernel, routes []routeEntry) ([]routeEntry, error) {
	if len(routes) == 0 || routes[0].hops[0].name == "" {
		return routes, nil
	}
	link, err := k.link(routes[0].hops[0].name)
	if err != nil {
		return nil, err
	}
	for i := range routes {
		routes[i].hops[0].link = link
	}
	return routes, nil
}

// apply does what is planned, and says how many requests the kernel has granted.
// What is to be removed stays where what should be instead has been refused, so
// that nothing is left without a route.
func (r *NetlinkRouter) apply(k *routeKernel, plan routePlan) (done int, err error) {
	refusals := k.change(plan.changes)
	refused := make(map[routeKey]bool)
	for i, err := range refusals {
		if err != nil {
			refused[plan.changes[i].route.routeKey] = true
		} else {
			done++
		}
	}
	removals := slices.DeleteFunc(slices.Clone(plan.removals), func(c routeChange) bool { return refused[c.route.routeKey] })
	more := k.change(removals)
	for _, err := range more {
		if err == nil {
			done++
		}
	}
	return done, errors.Join(summary(plan.changes, refusals), summary(removals, more))
}

// summary makes one error of many, by what they say.
func summary(changes []routeChange, errs []error) error {
	type group struct {
		err   error
		first routeEntry
		count int
	}
	var groups []*group
	byText := make(map[string]*group)
	for i, err := range errs {
		if err == nil {
			continue
		}
		g := byText[err.Error()]
		if g == nil {
			g = &group{err: err, first: changes[i].route}
			byText[err.Error()] = g
			groups = append(groups, g)
		}
		g.count++
	}
	var all []error
	for _, g := range groups {
		text := fmt.Sprintf("%v", g.first)
		if g.count > 1 {
			text = fmt.Sprintf("%d of %d routes, one of them %v", g.count, len(changes), g.first)
		}
		all = append(all, fmt.Errorf("%s: %w", text, g.err))
		if len(all) == 3 && len(groups) > 3 {
			all = append(all, fmt.Errorf("and %d other reasons", len(groups)-3))
			break
		}
	}
	return errors.Join(all...)
}

// conflict is the error for routes of somebody else.
func conflict(routes []routeEntry) error {
	var names []string
	for _, e := range routes {
		if len(names) == 3 {
			names = append(names, fmt.Sprintf("and %d more", len(routes)-3))
			break
		}
		names = append(names, e.String())
	}
	return fmt.Errorf("%w: %s: remove it, or take another metric or table", ErrConflict, strings.Join(names, "; "))
}

// noteShadows warns of routes that win over ours, once for the same ones.
func (r *NetlinkRouter) noteShadows(shadows []routeEntry) {
	var to []netip.Prefix
	for _, e := range shadows {
		to = append(to, e.to)
	}
	if len(to) > 0 && !slices.Equal(to, r.shadowed) {
		r.logger().Warn("routes of somebody else win over ours, by a lower metric", "routes", len(to), "one of them", shadows[0].String())
	}
	r.shadowed = to
}

package pathcontrol

import (
	"errors"
	"fmt"
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// allowed reports whether this process may change routes: it removes one that
// cannot be there, which those who may not are not even told.
func (k *routeKernel) allowed(protocol uint8) error {
	none := routeEntry{routeKey: routeKey{DefaultRouteTable, nowhere, 1<<32 - 1}, protocol: protocol, kind: kindUnreachable}
	err := k.change([]routeChange{{verbRemove, none}})[0]
	if errors.Is(err, unix.EPERM) {
		return err
	}
	return nil
}

// change makes changes and returns for each why it was refused. A route that was
// to be removed and is not there is removed.
func (k *routeKernel) change(changes []routeChange) []error {
	messages := make([][]byte, len(changes))
	for i, c := range changes {
		messages[i] = routeMessage(c)
	}
	answers := k.do(messages)
	for i, err := range answers {
		var no *routeRefusal
		if !errors.As(err, &no) {
			continue
		}
		switch {
		case changes[i].verb == verbRemove && (no.errno == unix.ESRCH || no.errno == unix.ENOENT || no.errno == unix.ENODEV):
			answers[i] = nil
		case changes[i].verb == verbAdd && no.errno == unix.EEXIST:
			answers[i] = fmt.Errorf("%w, since a moment", ErrConflict)
		}
	}
	return answers
}

// routes lists the routes of a table, or of a protocol, or of both; 0 is any.
func (k *routeKernel) routes(table uint32, protocol uint8) ([]routeEntry, error) {
	var all []routeEntry
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		var routes []routeEntry
		err := k.list(listRoutesMessage(family, table, protocol), func() { routes = nil }, func(m syscall.NetlinkMessage) error {
			// A kernel without IPv6 lists what it has instead.
			if m.Header.Type != unix.RTM_NEWROUTE || len(m.Data) == 0 || m.Data[0] != family {
				return nil
			}
			e, ok := parseRoute(m.Data)
			// Kernels before 4.20 list all tables.
			if ok && (table == 0 || e.table == table) && (protocol == 0 || e.protocol == protocol) {
				routes = append(routes, e)
			}
			return nil
		})
		// A table that nobody has used yet is not there, nor is IPv6 everywhere.
		if err != nil && !errors.Is(err, unix.ENOENT) && !(family == unix.AF_INET6 && errors.Is(err, unix.EOPNOTSUPP)) {
			return nil, fmt.Errorf("list of routes: %w", err)
		}
		all = append(all, routes...)
	}
	return all, nil
}

// rules lists the rules.
func (k *routeKernel) rules() ([]ruleEntry, error) {
	var all []ruleEntry
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		var rules []ruleEntry
		err := k.list(listRulesMessage(family), func() { rules = nil }, func(m syscall.NetlinkMessage) error {
			if e, ok := parseRule(m.Data); ok && m.Header.Type == unix.RTM_NEWRULE && m.Data[0] == family {
				rules = append(rules, e)
			}
			return nil
		})
		// Without policy routing there are none, and to add one says so.
		if err != nil && !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EAFNOSUPPORT) {
			return nil, fmt.Errorf("list of rules: %w", err)
		}
		all = append(all, rules...)
	}
	return all, nil
}

// changeRules adds and then removes rules.
func (k *routeKernel) changeRules(add, remove []ruleEntry) (done int, err error) {
	var messages [][]byte
	for _, e := range add {
		messages = append(messages, ruleMessage(e, true))
	}
	for _, e := range remove {
		messages = append(messages, ruleMessage(e, false))
	}
	var errs []error
	for i, err := range k.do(messages) {
		switch {
		case err == nil:
			done++
		case i < len(add) && errors.Is(err, unix.EEXIST), i >= len(add) && errors.Is(err, unix.ENOENT):
		case i < len(add):
			errs = append(errs, fmt.Errorf("rule %v: %w", add[i], err))
		default:
			errs = append(errs, fmt.Errorf("removal of rule %v: %w", remove[i-len(add)], err))
		}
	}
	return done, errors.Join(errs...)
}

// link returns the number of an interface that is up.
func (k *routeKernel) link(name string) (int, error) {
	var index int
	var flags uint32
	k.mu.Lock()
	defer k.mu.Unlock()
	err := k.ask(getLinkMessage(name), func(m syscall.NetlinkMessage) {
		if at, _, f, ok := parseLink(m.Data); ok {
			index, flags = at, f
		}
	})
	switch {
	case errors.Is(err, unix.ENODEV) || err == nil && index == 0:
		return 0, fmt.Errorf("there is no interface %q: %w", name, unix.ENODEV)
	case err != nil:
		return 0, fmt.Errorf("interface %q: %w", name, err)
	case flags&uint32(net.FlagUp) == 0:
		return 0, fmt.Errorf("the interface %q is down: ip link set dev %s up: %w", name, name, unix.ENETDOWN)
	}
	return index, nil
}

// ask sends one request and calls f with what comes before the end of the answer.
func (k *routeKernel) ask(request []byte, f func(syscall.NetlinkMessage)) error {
	k.seq++
	message := finishMessage(request, unix.NLM_F_REQUEST|unix.NLM_F_ACK, k.seq)
	if err := unix.Sendto(k.talk.GetFd(), message, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("netlink: %w", err)
	}
	for {
		list, _, err := k.talk.Receive()
		if err != nil {
			return fmt.Errorf("netlink: %w", err)
		}
		for _, m := range list {
			switch {
			case m.Header.Seq != k.seq || m.Header.Pid != k.port:
			case m.Header.Type == unix.NLMSG_ERROR:
				return parseAnswer(m)
			default:
				f(m)
			}
		}
	}
}

// newsQuiet is how long no news have to come to be sure that none is left.
const newsQuiet = 10 * time.Millisecond

// watch tells of changes that can have to do with the router's routes, until
// unwatch. The channel must have room for one.
func (r *NetlinkRouter) watch(k *routeKernel, news chan<- struct{}) {
	concerns := r.concerns(k.port)
	quiet := unix.NsecToTimeval(newsQuiet.Nanoseconds())
	for {
		list, _, err := k.events.Receive()
		matters := false
		switch {
		case errors.Is(err, unix.ENOBUFS):
			// More has happened than the socket can hold: all is looked at, and
			// again when nothing is left to read. Until then the kernel drops what
			// happens without a further word.
			_ = k.events.SetReceiveTimeout(&quiet) // fails never
			r.lost()
			matters = true
		case errors.Is(err, unix.EAGAIN):
			_ = k.events.SetReceiveTimeout(&unix.Timeval{})
			matters = true
		case err != nil:
			return // by unwatch; else the regular looks must do
		}
		for _, m := range list {
			matters = matters || concerns(m)
		}
		if !matters {
			continue
		}
		select {
		case news <- struct{}{}:
		default:
		}
	}
}

// concerns returns what tells whether news have to do with the router. What the
// router itself has done has not.
func (r *NetlinkRouter) concerns(self uint32) func(syscall.NetlinkMessage) bool {
	to := make(map[string]bool)
	for _, n := range r.Networks {
		to[n.String()] = true
	}
	names, anyLink := make(map[string]bool), false
	for _, hop := range r.Hops {
		names[hop.Interface] = true
		anyLink = anyLink || hop.Interface == ""
	}
	return func(m syscall.NetlinkMessage) bool {
		switch m.Header.Type {
		case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
			e, ok := parseRoute(m.Data)
			return ok && m.Header.Pid != self && (r.owns(e) || e.table == r.table() && to[e.to.String()] || r.PerPath && r.isProbeTable(e.table))
		case unix.RTM_NEWRULE, unix.RTM_DELRULE:
			return r.PerPath && m.Header.Pid != self
		case unix.RTM_NEWLINK, unix.RTM_DELLINK:
			_, name, _, ok := parseLink(m.Data)
			return ok && (anyLink || names[name])
		}
		return true // addresses
	}
}

// lost counts news that the kernel has dropped.
func (r *NetlinkRouter) lost() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.status.Lost++
}

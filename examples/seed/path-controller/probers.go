package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"strings"

	"github.com/rhizome-tunnel/rhizome/pathcontrol"
)

// question is one that a probe asks.
type question struct {
	text   string // as on the command line
	scheme string // icmp, tcp or http
	host   netip.Addr
	port   string
	path   string // of http
}

// parseFar reads --probe, whose host is that of the path.
func parseFar(s string) (question, error) {
	q := question{text: s, scheme: "icmp"}
	if s == "icmp" {
		return q, nil
	}
	var ok bool
	if q.port, ok = strings.CutPrefix(s, "tcp:"); ok {
		q.scheme = "tcp"
		return q, checkPort(q.port)
	}
	if u, err := url.Parse(s); err == nil && u.Scheme == "http" {
		if u.Hostname() != "" {
			return q, errors.New("the host is that of each path, leave it out: http://:PORT/PATH")
		}
		q.scheme, q.port, q.path = "http", u.Port(), u.RequestURI()
		if q.port == "" {
			q.port = "80"
		}
		return q, checkPort(q.port)
	}
	return q, errors.New("want icmp, tcp:PORT or http://:PORT/PATH")
}

// parseBehind reads --probe-behind.
func parseBehind(s string) (question, error) {
	q := question{text: s}
	u, err := url.Parse(s)
	if err != nil || u.User != nil {
		return q, errors.New("want icmp://IP, tcp://IP:PORT or http://IP:PORT/PATH")
	}
	q.scheme, q.port = u.Scheme, u.Port()
	if q.host, err = netip.ParseAddr(u.Hostname()); err != nil {
		return q, errors.New("want an IP: a name would have to be looked up for each probe, by whichever way")
	}
	q.host = q.host.Unmap()
	rest := u.Path != "" || u.RawQuery != ""
	switch {
	case q.scheme == "icmp" && q.port == "" && !rest:
		return q, nil
	case q.scheme == "tcp" && !rest:
		return q, checkPort(q.port)
	case q.scheme == "http":
		q.path = u.RequestURI()
		if q.port == "" {
			q.port = "80"
		}
		return q, checkPort(q.port)
	}
	return q, errors.New("want icmp://IP, tcp://IP:PORT or http://IP:PORT/PATH")
}

func checkPort(s string) error {
	if n, err := strconv.ParseUint(s, 10, 16); err != nil || n == 0 {
		return fmt.Errorf("port %q: want 1 to 65535", s)
	}
	return nil
}

// probers are what a path is judged by: its far end, what the bond below knows of
// it, and each thing behind it.
func (p *program) probers(path path) ([]pathcontrol.Prober, error) {
	far := p.probe
	far.host = path.via
	// Bound to the interface, and so by no other way.
	list := []pathcontrol.Prober{p.prober(far, "far end by "+far.scheme, pathcontrol.Through{Interface: path.device, Source: path.sourceFor(path.via)})}
	if p.members != "" {
		url := "http://" + p.members + "/members/" + path.via.String()
		list = append(list, pathcontrol.Named{Name: "members", Prober: &pathcontrol.HTTP{URL: url}})
	}
	for _, q := range p.behind {
		mark, err := p.router.Mark(path.name)
		if err != nil {
			return nil, err
		}
		list = append(list, p.prober(q, "behind: "+q.text, pathcontrol.Through{Mark: mark}))
	}
	return list, nil
}

func (p *program) prober(q question, name string, through pathcontrol.Through) pathcontrol.Prober {
	address := net.JoinHostPort(q.host.String(), q.port)
	var prober pathcontrol.Prober
	switch q.scheme {
	case "tcp":
		prober = &pathcontrol.TCP{Addr: address, Through: through}
	case "http":
		prober = &pathcontrol.HTTP{URL: "http://" + address + q.path, Through: through}
	default:
		i := &pathcontrol.ICMP{Addr: q.host, Through: through}
		p.icmp = append(p.icmp, i)
		prober = i
	}
	return pathcontrol.Named{Name: name, Prober: prober}
}

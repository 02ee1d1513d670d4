package pathcontrol

import (
	"errors"
	"net/netip"
	"reflect"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// TestRouteMessages: what we ask for reads as what we meant.
func TestRouteMessages(t *testing.T) {
	for _, e := range []routeEntry{
		place(false, 215, 50, "10.0.0.1", "10.0.0.2"),
		place(false, 215, 50, "fd00::1", ""),
		place(true, 9, 1, "fd00::1", "fd00::2"),
		place(true, 9, 1, "", ""),
		{routeKey: routeKey{70000, netip.MustParsePrefix("0.0.0.0/0"), 3}, protocol: 215, kind: kindUnicast,
			hops: []routeHop{{via: netip.MustParseAddr("fe80::1"), link: 3, onLink: true}}},
		{routeKey: routeKey{300, netip.MustParsePrefix("::/0"), 3}, protocol: 215, kind: kindUnreachable},
	} {
		m := finishMessage(routeMessage(routeChange{verbAdd, e}), unix.NLM_F_REQUEST, 7)
		list, err := syscall.ParseNetlinkMessage(m)
		if err != nil || len(list) != 1 || list[0].Header.Seq != 7 || list[0].Header.Type != unix.RTM_NEWROUTE {
			t.Fatalf("%v %v", list, err)
		}
		if got, ok := parseRoute(list[0].Data); !ok || !reflect.DeepEqual(got, e) {
			t.Errorf("%v, want %v", got, e)
		}
	}
	for i, what := range map[int]string{2: "a source", 3: "a type of service", 0: "another family"} {
		m := routeMessage(routeChange{verbAdd, place(false, 215, 50, "10.0.0.1", "")})[sizeofNlmsg:]
		m[i] = 8
		if e, ok := parseRoute(m); ok {
			t.Errorf("a route for %s: %v", what, e)
		}
	}
	rule := ruleEntry{v6: true, priority: 4, mark: 5, mask: 6, table: 70000, protocol: 8}
	if got, ok := parseRule(ruleMessage(rule, true)[sizeofNlmsg:]); !ok || got != rule {
		t.Errorf("%+v, want %+v", got, rule)
	}
	rule.protocol, rule.anonymous = 0, true
	if got, ok := parseRule(ruleMessage(rule, false)[sizeofNlmsg:]); !ok || got != rule {
		t.Errorf("%+v, want %+v", got, rule)
	}
}

func TestRouteRefusals(t *testing.T) {
	answer := func(errno syscall.Errno, capped bool, words string) syscall.NetlinkMessage {
		m := syscall.NetlinkMessage{Header: syscall.NlMsghdr{Type: unix.NLMSG_ERROR}}
		m.Data = native.AppendUint32(nil, uint32(-int32(errno)))
		request := finishMessage(beginMessage(unix.RTM_NEWROUTE, 0, 1, 2, 3, 4, 5), 0, 1)
		if capped {
			m.Header.Flags |= unix.NLM_F_CAPPED
			request = request[:sizeofNlmsg]
		}
		for len(request)%4 != 0 {
			request = append(request, 0)
		}
		m.Data = append(m.Data, request...)
		if words != "" {
			m.Header.Flags |= unix.NLM_F_ACK_TLVS
			m.Data = attribute(m.Data, unix.NLMSGERR_ATTR_MSG, append([]byte(words), 0)...)
		}
		return m
	}
	for _, capped := range []bool{false, true} {
		for errno, want := range map[syscall.Errno]string{
			unix.EPERM:        "CAP_NET_ADMIN",
			unix.EAFNOSUPPORT: "this kernel cannot do that",
			unix.ENETUNREACH:  "has the next hop for a neighbour",
			unix.ENETDOWN:     "ip link set",
			unix.EACCES:       "disable_ipv6",
			unix.EINVAL:       "is Source an address",
			unix.ENOMEM:       "cannot allocate memory",
		} {
			err := parseAnswer(answer(errno, capped, "said the kernel"))
			if !errors.Is(err, errno) || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "said the kernel (") {
				t.Errorf("%v", err)
			}
			if errors.Is(err, errors.ErrUnsupported) != (errno == unix.EAFNOSUPPORT) {
				t.Errorf("%v: unsupported?", err)
			}
		}
	}
	if err := parseAnswer(answer(0, true, "")); err != nil {
		t.Error(err)
	}
	if err := parseAnswer(syscall.NetlinkMessage{}); err != nil {
		t.Error(err)
	}
}

// FuzzRouteMessage: whatever the kernel sends, reading it comes to an end.
func FuzzRouteMessage(f *testing.F) {
	f.Add(routeMessage(routeChange{verbAdd, place(false, 215, 50, "fd00::1", "10.0.0.2")})[sizeofNlmsg:])
	f.Add(ruleMessage(ruleEntry{v6: true, priority: 4, mark: 5, mask: 6, table: 70000, protocol: 8}, true)[sizeofNlmsg:])
	hops := attribute(nil, unix.RTA_GATEWAY, 10, 0, 0, 1)
	hops = append([]byte{byte(8 + len(hops)), 0, 0, 0, 7, 0, 0, 0}, hops...)
	m := routeMessage(routeChange{verbAdd, place(false, 215, 50, "", "")})[sizeofNlmsg:]
	f.Add(attribute(m, unix.RTA_MULTIPATH, append(hops, hops...)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		if e, ok := parseRoute(b); ok && !e.to.IsValid() {
			t.Errorf("%v", e)
		}
		parseRule(b)
		parseLink(b)
		for _, kind := range []uint16{unix.NLMSG_ERROR, unix.NLMSG_DONE} {
			for _, flags := range []uint16{0, unix.NLM_F_ACK_TLVS, unix.NLM_F_ACK_TLVS | unix.NLM_F_CAPPED} {
				_ = parseAnswer(syscall.NetlinkMessage{Header: syscall.NlMsghdr{Type: kind, Flags: flags}, Data: b})
			}
		}
	})
}

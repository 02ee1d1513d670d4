package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"flag"
	"strings"
	"testing"

	"github.com/rhizome-tunnel/rhizome/examples/internal/cli"
	"github.com/rhizome-tunnel/rhizome/pathcontrol"
)

const good = "--path a=fd00::a --network 10.96.0.0/16 "

func TestBadFlags(t *testing.T) {
	for args, want := range map[string]string{
		"--foo":                                                 "not defined: --foo",
		"extra":                                                 `unexpected argument "extra"`,
		"--network 10.0.0.0/8":                                  "--path is missing",
		"--path a=fd00::a":                                      "--network is missing",
		good + "--path b":                                       `--path "b": want NAME=VIA`,
		good + "--path =fd00::b":                                `--path "=fd00::b": want NAME=VIA`,
		good + "--path b=host":                                  `--path "b=host": want NAME=VIA`,
		good + "--path b=ff02::1":                               `--path "b=ff02::1": want NAME=VIA`,
		good + "--path a=fd00::b":                               "there is a path a already",
		good + "--path b=fd00::b,src=x":                         `src "x" is not an IP`,
		good + "--path b=fd00::b,src=fe80::1%e0":                `src "fe80::1%e0" is not an IP`,
		good + "--path b=fd00::b,dev=":                          `"dev=": want src=IP or dev=NAME`,
		good + "--path b=fd00::b,metric=3":                      `"metric=3": want src=IP or dev=NAME`,
		good + "--path b=10.0.0.1 --network fd10::/64":          "10.0.0.1",
		good + "--network 10.0.0.0":                             `--network "10.0.0.0": want an address and a prefix length`,
		good + "--network 10.0.0.1/8":                           "10.0.0.1/8",
		good + "--network 0.0.0.0/0":                            "0.0.0.0/0",
		good + "--failback sometimes":                           `--failback "sometimes": want always, never or better`,
		good + "--probe ping":                                   `--probe "ping": want icmp, tcp:PORT or http://:PORT/PATH`,
		good + "--probe tcp:x":                                  `--probe "tcp:x": port "x": want 1 to 65535`,
		good + "--probe http://host:80/":                        `the host is that of each path, leave it out`,
		good + "--probe http://:0/":                             `port "0": want 1 to 65535`,
		good + "--probe-behind 10.96.0.1":                       `--probe-behind "10.96.0.1": want an IP`,
		good + "--probe-behind tcp://kube-dns:53":               "want an IP: a name would have to be looked up",
		good + "--probe-behind tcp://10.96.0.1":                 `port "": want 1 to 65535`,
		good + "--probe-behind icmp://10.96.0.1:3":              "want icmp://IP, tcp://IP:PORT or http://IP:PORT/PATH",
		good + "--probe-behind https://10.96.0.1":               "want icmp://IP, tcp://IP:PORT or http://IP:PORT/PATH",
		good + "--probe-behind http://u:p@10.96.0.1":            "want icmp://IP, tcp://IP:PORT or http://IP:PORT/PATH",
		good + "--probe-behind icmp://10.97.0.1":                `10.97.0.1 is in no --network, so that no path leads there`,
		good + "--probe-interval 0":                             "--probe-interval 0s: want more than 0",
		good + "--probe-timeout -1s":                            "--probe-timeout -1s: want more than 0",
		good + "--fall -1":                                      "--fall -1: want 0 or more",
		good + "--members x":                                    `--members "x": want host:port`,
		good + "--rise -1s":                                     "--rise -1s: want 0 or more",
		good + "--metric 0":                                     "--metric 0: want 1 at least",
		good + "--table 255":                                    "255",
		good + "--protocol 0":                                   "--protocol 0: want 5 to 255",
		good + "--probe-mark 0 --probe-behind icmp://10.96.0.1": "--probe-mark 0: want 1 at least",
		good + "--probe-table 0":                                "--probe-table 0: want 1 at least",
		good + "--admin-listen x":                               `--admin-listen "x": want host:port`,
		good + "--log-format xml":                               "want text or json",
	} {
		var out bytes.Buffer
		// Not run: what is not refused would go to work.
		_, err := parse(strings.Fields(args), &out)
		var usage *cli.UsageError
		if !errors.As(err, &usage) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", args, err, want)
		}
	}
}

// TestProgram has what the flags make of the library.
func TestProgram(t *testing.T) {
	var out bytes.Buffer
	o, err := parse(strings.Fields("--device bond0 --path a=fd00::a,src=fd00::1 --path b=fd00::b,dev=tun0,src=10.0.0.1 --network 10.96.0.0/16 --network fd10::/64"+
		" --probe http://:8080/ready?x=1 --probe-behind tcp://10.96.0.10:53 --probe-behind icmp://[fd10::1] --probe-behind http://10.96.0.10/x"+
		" --failback better --rise 0 --fall 5"), &out)
	if err != nil {
		t.Fatal(err)
	}
	p, err := newProgram(o, o.log.Logger(&out))
	if err != nil {
		t.Fatal(err)
	}
	c := p.controller
	if len(c.Paths) != 2 || c.Paths[1].Name != "b" || c.Paths[0].Preference >= c.Paths[1].Preference || c.Failback != pathcontrol.Better ||
		c.Hysteresis.Rise >= 0 || c.Hysteresis.Fall != 5 || len(p.icmp) != 2 {
		t.Errorf("got %+v", c)
	}
	far := c.Paths[0].Probers[0].(pathcontrol.Named).Prober.(*pathcontrol.HTTP)
	if far.URL != "http://[fd00::a]:8080/ready?x=1" || far.Through.Interface != "bond0" || far.Through.Source.String() != "fd00::1" || far.Through.Mark != 0 {
		t.Errorf("far end: %+v", far)
	}
	if b := c.Paths[1].Probers[0].(pathcontrol.Named).Prober.(*pathcontrol.HTTP); b.Through.Interface != "tun0" || b.Through.Source.IsValid() {
		t.Errorf("far end of b: %+v", b)
	}
	marks := make(map[uint32]bool)
	for _, path := range c.Paths {
		behind := path.Probers[1].(pathcontrol.Named)
		tcp := behind.Prober.(*pathcontrol.TCP)
		if behind.Name != "behind: tcp://10.96.0.10:53" || tcp.Addr != "10.96.0.10:53" || tcp.Through.Mark == 0 || len(path.Probers) != 4 {
			t.Errorf("behind %s: %+v", path.Name, tcp)
		}
		marks[tcp.Through.Mark] = true
	}
	if len(marks) != 2 {
		t.Errorf("marks: %v", marks)
	}
	if page := p.status(); page.Chosen != "" || page.InUse || p.ready() == nil {
		t.Errorf("before the start: %+v", page)
	}
}

// TestMembersFlag has the vpn-client asked, and more patience then.
func TestMembersFlag(t *testing.T) {
	for args, want := range map[string]int{"": 12, " --members 127.0.0.1:8137": 36, " --members 127.0.0.1:8137 --fall 5": 5} {
		var out bytes.Buffer
		o, err := parse(strings.Fields(good+args), &out)
		if err != nil {
			t.Fatal(err)
		}
		p, err := newProgram(o, o.log.Logger(&out))
		if err != nil {
			t.Fatal(err)
		}
		if got := cmp.Or(p.controller.Hysteresis.Fall, 12); got != want {
			t.Errorf("%s: fall %d, want %d", args, got, want)
		}
		probers := p.controller.Paths[0].Probers
		if args == "" {
			continue
		}
		if named := probers[1].(pathcontrol.Named); named.Name != "members" || named.Prober.(*pathcontrol.HTTP).URL != "http://127.0.0.1:8137/members/fd00::a" {
			t.Errorf("%s: %+v", args, named)
		}
	}
}

func TestHelp(t *testing.T) {
	var out, logs bytes.Buffer
	if err := run(context.Background(), []string{"-h"}, &out, &logs); !errors.Is(err, flag.ErrHelp) {
		t.Fatal(err)
	}
	for _, want := range []string{
		"path-controller runs beside a kube-apiserver", "moves the route", "path-controller --device bond0", "--path NAME=VIA[,src=IP][,dev=NAME]",
		"--network CIDR", "(default always)", "(default 500ms)", "0 means 12, and 36 with --members", "/readyz (a path is in use, and up)",
	} {
		if !strings.Contains(strings.Join(strings.Fields(out.String()), " "), want) {
			t.Errorf("the help has no %q", want)
		}
	}
	if logs.Len() > 0 {
		t.Errorf("standard error: %s", &logs)
	}
}

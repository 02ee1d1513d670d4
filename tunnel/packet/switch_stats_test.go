package packet_test

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/packet"
	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// Defaults, and bounds that are lifted.
func TestSwitchWithoutBounds(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		none := new(packet.Switch)
		if st := none.Stats(); none.Members() != nil || len(st.Ports) != 0 || st.MACs != 0 {
			t.Errorf("a switch that was not used: %+v", st)
		}
		w := newSwitchWorld(t, &packet.Switch{Mode: packet.TAP, MaxPorts: -1, MaxMACs: -1, MaxMACsPerPort: -1, Aging: -1})
		a := w.join("a", 1, []string{"fd00::a:1"})
		b := w.join("b", 2, []string{"fd00::b:1"})
		for leg := range 256 {
			a.say(ether(b.mac, packet.MAC(a.addr, leg), udp(a.addr, b.addr)))
		}
		time.Sleep(1000 * time.Hour)
		if st := w.Stats(); st.MACs != 256 || len(st.Drops) != 0 {
			t.Errorf("stats: %+v", st)
		}
	})
}

// Statistics are readable where they end up.
func TestSwitchStatsJSON(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		w := newSwitchWorld(t, &packet.Switch{Mode: packet.TAP})
		a := w.join("a", 1, []string{"fd00::a:1"})
		a.say(ether(a.mac, a.mac, udp(a.addr, a.addr)), make([]byte, 14))
		b, err := json.Marshal(w.Stats())
		const want = `{"frames":2,"bytes":81,"drops":{"mac":1,"no-route":1},"macs":1,"ports":[` +
			`{"name":"a","member":{"id":"1","name":"a","addresses":["fd00::a:1"]},"macs":1,"framesIn":2,"bytesIn":81,` +
			`"drops":{"mac":1,"no-route":1},"queue":{"frames":0,"bytes":0,"dropped":0,"waiting":0}}]}`
		if err != nil || string(b) != want {
			t.Errorf("%s, %v", b, err)
		}
	})
	if s := packet.Drop(-1).String() + packet.Drop(1000).String() + packet.DropQueue.String(); s != "unknownunknownqueue" {
		t.Error(s)
	}
}

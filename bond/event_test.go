package bond

import (
	"bytes"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rhizome-tunnel/rhizome/tunnel/packet"
	"github.com/rhizome-tunnel/rhizome/tunnel/tunneltest"
)

// TestLogger: a line for each event, of what is not empty.
func TestLogger(t *testing.T) {
	var text bytes.Buffer
	log := slog.New(slog.NewTextHandler(&text, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}}))
	var events teller
	events.add(Event{Kind: Switched, Peer: "shoot", From: "tap0", To: "tap1", Reason: "tap0 is down"})
	events.add(Event{Kind: Failed, Link: "tap0", Reason: "no"})
	events.tell(nil, log)
	want := `level=INFO msg=switched peer=shoot from=tap0 to=tap1 reason="tap0 is down"
level=WARN msg=failed link=tap0 reason=no
`
	if got := text.String(); got != want {
		t.Errorf("logged\n%swant\n%s", got, want)
	}
}

// TestNameless: a member without a name is called by its number.
func TestNameless(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		b := startBond(t, &Bond{Mode: packet.TUN})
		defer b.end()
		b.link("a").tellMembers([]packet.Member{{ID: 0xabc}})
		synctest.Wait()
		if list := b.events(Switched); len(list) != 1 || list[0].Peer != "0000000000000abc" {
			t.Errorf("events %+v", list)
		}
	})
}

// TestSpare: as long as nobody is known, the link that is used stays.
func TestSpare(t *testing.T) {
	tunneltest.Bubble(t, func(t *testing.T) {
		b := startBond(t, &Bond{Mode: packet.TAP})
		defer b.end()
		b.link("b")
		b.wantVia(2, "b")
		b.link("a").setRTT(time.Millisecond)
		b.wantVia(2, "b")
		b.links["b"].drain()
		b.wantVia(2, "a")
	})
}

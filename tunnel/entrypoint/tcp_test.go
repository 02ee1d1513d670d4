package entrypoint

import (
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

// Over real sockets a close with bytes unread resets the connection under the
// answer, and who has not finished its message does not read: the answers arrive
// all the same.
func TestAnswersArriveOverTCP(t *testing.T) {
	router := &Router{}
	if err := router.SetRoutes([]*Route{{
		Name: "gone", SNI: []string{nameA}, HeaderValues: []string{headerA}, Handler: &Forward{Backends: []string{"127.0.0.1:1"}},
	}}); err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 2)
	doors := map[By]string{BySNI: "", ByHeader: ""}
	for by := range doors {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		doors[by] = l.Addr().String()
		go func() { served <- router.Serve(l, &Door{By: by}) }()
	}
	t.Cleanup(func() {
		router.Close()
		for range doors {
			<-served
		}
	})
	a := HeaderReversedVPN + ": " + headerA
	for _, tc := range []struct {
		name string
		by   By
		say  string
		want string
	}{
		{"an unknown name in 60 KiB", BySNI, sized(t, nameB, 60<<10), "alert 112"},
		{"no backend for 60 KiB", BySNI, sized(t, nameA, 60<<10), "alert 80"},
		{"a hello that is too large", BySNI, records(payload(sized(t, nameA, 60<<10)), 1), "alert 50"},
		{"more than is read", BySNI, "\x16\xff" + strings.Repeat("\xff", 200<<10), "alert 50"},
		{"plain HTTP with a body", BySNI, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 102400\r\n\r\n" + strings.Repeat("x", 100<<10), "400"},
		{"TLS on the other port", ByHeader, sized(t, nameA, 60<<10), "alert 10"},
		{"a head without end", ByHeader, crlf("CONNECT x:1 HTTP/1.1\n" + strings.Repeat("a: "+strings.Repeat("b", 1000)+"\n", 200)), "431"},
		{"a body", ByHeader, crlf(connectHead(a, "Content-Length: 102400")) + strings.Repeat("x", 100<<10), "400"},
		{"no route, and much behind it", ByHeader, crlf(connectHead(HeaderReversedVPN+": x")) + strings.Repeat("x", 200<<10), "403"},
		{"no backend, and much behind it", ByHeader, crlf(connectHead(a)) + strings.Repeat("x", 100<<10), "503"},
	} {
		c, err := net.Dial("tcp", doors[tc.by])
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(time.Minute))
		if _, err := io.WriteString(c, tc.say); err != nil {
			t.Errorf("%s: %v", tc.name, err)
		}
		if got := outcome(c); got != tc.want {
			t.Errorf("%s: %s, want %s", tc.name, got, tc.want)
		}
		c.Close()
	}
}

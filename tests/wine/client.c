/* Calls one function for each line of its input, and prints a line: HRESULT, result, error record.
 *
 * The fields of a line are separated by tabs: a name, then a handle, a GUID or a document as the function takes
 * them. Text is UTF-8 outside and UTF-16 inside. Every string that a function returns is freed.
 */
#include <windows.h>
#include <objbase.h>
#include <computenetwork.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LONGEST 32768

HRESULT WINAPI HNSCall(PCWSTR, PCWSTR, PCWSTR, PWSTR *);
LONG WINAPI OpenHandles(void);
void WINAPI Disconnect(void);

static DWORD notified;

static void CALLBACK notify(DWORD kind, void *context, HRESULT status, PCWSTR data)
{
    if (context == &notified && status == S_OK && !data)
        notified = kind;
}

static wchar_t *wide(const char *text)
{
    static wchar_t made[3][LONGEST];
    static int next;
    wchar_t *found = made[next++ % 3];
    MultiByteToWideChar(CP_UTF8, 0, text, -1, found, LONGEST);
    return found;
}

static GUID guid(const char *text)
{
    GUID made = {0};
    wchar_t braced[64];
    swprintf(braced, 64, L"{%hs}", text);
    if (*text)
        CLSIDFromString(braced, &made);
    return made;
}

static void print(PWSTR text)
{
    static char made[4 * LONGEST];
    if (text)
        WideCharToMultiByte(CP_UTF8, 0, text, -1, made, sizeof made, NULL, NULL);
    printf("\t%s", text ? made : "");
    CoTaskMemFree(text);
}

#define IS(text) (!strcmp(name, text))
#define HANDLE_OF(text) ((void *)strtoull(text, NULL, 10))

int main(void)
{
    static char line[LONGEST];
    CoInitialize(NULL);
    while (fgets(line, sizeof line, stdin)) {
        char *fields[4] = {"", "", "", ""}, *rest = line;
        int count = 0;
        line[strcspn(line, "\r\n")] = 0;
        while (count < 4 && rest) {
            char *tab = strchr(rest, '\t');
            fields[count++] = rest;
            if (tab)
                *tab++ = 0;
            rest = tab;
        }
        char *name = fields[0], *a = fields[1], *b = fields[2], *c = fields[3];
        PWSTR out = NULL, record = NULL;
        void *handle = NULL;
        GUID first = guid(IS("HcnCreateEndpoint") ? b : strlen(a) == 36 ? a : "");
        HRESULT status = E_NOTIMPL;
        if (IS("HNSCall"))
            status = HNSCall(wide(a), wide(b), wide(c), &out);
        else if (IS("HcnEnumerateNetworks"))
            status = HcnEnumerateNetworks(wide(a), &out, &record);
        else if (IS("HcnOpenNetwork"))
            status = HcnOpenNetwork(&first, &handle, &record);
        else if (IS("HcnQueryNetworkProperties"))
            status = HcnQueryNetworkProperties(HANDLE_OF(a), wide(b), &out, &record);
        else if (IS("HcnCloseNetwork"))
            status = HcnCloseNetwork(HANDLE_OF(a));
        else if (IS("HcnEnumerateEndpoints"))
            status = HcnEnumerateEndpoints(wide(a), &out, &record);
        else if (IS("HcnCreateEndpoint"))
            status = HcnCreateEndpoint(HANDLE_OF(a), &first, wide(c), &handle, &record);
        else if (IS("HcnOpenEndpoint"))
            status = HcnOpenEndpoint(&first, &handle, &record);
        else if (IS("HcnQueryEndpointProperties"))
            status = HcnQueryEndpointProperties(HANDLE_OF(a), wide(b), &out, &record);
        else if (IS("HcnDeleteEndpoint"))
            status = HcnDeleteEndpoint(&first, &record);
        else if (IS("HcnCloseEndpoint"))
            status = HcnCloseEndpoint(HANDLE_OF(a));
        else if (IS("HcnEnumerateLoadBalancers"))
            status = HcnEnumerateLoadBalancers(wide(a), &out, &record);
        else if (IS("HcnCreateLoadBalancer"))
            status = HcnCreateLoadBalancer(&first, wide(b), &handle, &record);
        else if (IS("HcnOpenLoadBalancer"))
            status = HcnOpenLoadBalancer(&first, &handle, &record);
        else if (IS("HcnModifyLoadBalancer"))
            status = HcnModifyLoadBalancer(HANDLE_OF(a), wide(b), &record);
        else if (IS("HcnQueryLoadBalancerProperties"))
            status = HcnQueryLoadBalancerProperties(HANDLE_OF(a), wide(b), &out, &record);
        else if (IS("HcnDeleteLoadBalancer"))
            status = HcnDeleteLoadBalancer(&first, &record);
        else if (IS("HcnCloseLoadBalancer"))
            status = HcnCloseLoadBalancer(HANDLE_OF(a));
        else if (IS("HcnRegisterServiceCallback"))
            status = HcnRegisterServiceCallback(notify, &notified, &handle);
        else if (IS("HcnUnregisterServiceCallback"))
            status = HcnUnregisterServiceCallback(HANDLE_OF(a));
        else if (IS("Disconnect")) {
            Disconnect();
            status = S_OK;
            handle = (void *)(ULONG_PTR)notified;
        } else if (IS("OpenHandles")) {
            status = S_OK;
            handle = (void *)(LONG_PTR)OpenHandles();
        }
        printf("%lu\t%llu", (unsigned long)status, (unsigned long long)(ULONG_PTR)handle);
        print(out);
        print(record);
        printf("\n");
        fflush(stdout);
    }
    return 0;
}
